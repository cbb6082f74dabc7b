from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "build"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=60, check=False)


def test_help_lists_every_command_with_one_line() -> None:
    shown = build("--help")

    assert shown.returncode == 0
    for line in (
        "serve       Serve on this machine, by default the small model.",
        "test        Run the tests; arguments are pytest's.",
        "check       Check lint, formatting, types and generated documentation.",
    ):
        assert " ".join(line.split()) in " ".join(shown.stdout.split())
    # What commands share is no command.
    assert "terminal" not in shown.stdout


def test_a_commands_help_needs_no_environment() -> None:
    shown = build("serve", "--help")

    assert shown.returncode == 0
    assert "--emulator" in shown.stdout
    assert shown.stderr == ""


def test_an_unknown_command_is_told_which_there_are() -> None:
    refused = build("publish")

    assert refused.returncode == 2
    assert "invalid choice: 'publish'" in refused.stderr
    assert "serve" in refused.stderr


def test_listing_commands_imports_none_of_them() -> None:
    script = (
        "import runpy, sys\n"
        f"names = runpy.run_path({str(ROOT / 'build')!r})['commands']()\n"
        "assert 'serve' in names, names\n"
        "sys.exit(' '.join(name for name in sys.modules if name.startswith('commands.')))"
    )
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert listed.stderr.strip() == ""


STEPS = ["check", "engine", "engine --arch arm64", "test"]


@pytest.mark.parametrize(("failing", "status"), [("none", 0), *((step, 3) for step in STEPS)])
def test_ci_runs_all_and_fails_if_one_does(tmp_path: Path, failing: str, status: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    stand_in = tmp_path / "build"
    stand_in.write_text(f'#!/bin/sh\necho "$*"\n[ "$*" = "{failing}" ] && exit 3\nexit 0\n', encoding="utf-8")
    stand_in.chmod(0o755)

    ran = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=60, check=False)

    assert ran.stdout.splitlines() == STEPS
    assert ran.returncode == status
