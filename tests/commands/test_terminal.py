from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from commands.terminal import ProcessFailed, follow, lock, seconds


@pytest.mark.parametrize(("elapsed", "said"), [(0.123, "0.12 s"), (12.3, "12 s"), (187, "3 min 07 s")])
def test_durations_are_said_as_one_reads_them(elapsed: float, said: str) -> None:
    assert seconds(elapsed) == said


def test_a_failing_program_is_named_with_its_last_lines(tmp_path: Path) -> None:
    lines: list[str] = []

    with pytest.raises(ProcessFailed, match=r"(?s)ended with status 3. Its last lines:\nfirst\nlast$"):
        follow(["/bin/sh", "-c", "echo first; echo last >&2; exit 3"], lines.append, log=tmp_path / "log")

    assert lines == ["first\n", "last\n"]
    assert (tmp_path / "log").read_text() == "first\nlast\n"


def test_a_program_that_was_killed_is_said_so() -> None:
    with pytest.raises(ProcessFailed, match="was killed by signal 9"):
        follow(["/bin/sh", "-c", "kill -9 $$"], lambda line: None)


def test_the_second_waits_for_the_lock_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, pathlib; from commands.terminal import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'making .venv'): print('held')"
    )
    with lock(path, "making .venv"):
        second = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        assert second.stderr.readline() == "Waiting for another ./build that is making .venv ...\n"
        assert second.poll() is None

    output, _ = second.communicate(timeout=30)

    assert output == "held\n"
    assert second.returncode == 0
