from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llamafn.fetch
from commands import fetch
from llamafn.fetch.progress import Progress
from tests.fetch.models import a_gguf
from tests.fetch.server import Answer, ScriptedServer

MODEL = a_gguf(6_000_000)
PROGRAM = """
import argparse, sys
from commands import fetch
parser = argparse.ArgumentParser()
fetch.add_arguments(parser)
sys.exit(fetch.run(parser.parse_args()))
"""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server
    llamafn.fetch._open.clear()


def environ(target: Path, **settings: str) -> dict[str, str]:
    return os.environ | {"LOCAL_MODEL_PATH": str(target), **settings}


def test_in_a_build_it_says_where_the_model_is(server: ScriptedServer, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    uri = server.put("/model.gguf", MODEL)

    for _ in range(2):  # the second time it is there
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, uri], env=environ(target), capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"{target}: 6 of 6 MB, sha256 ")

    assert target.read_bytes() == MODEL
    assert [asked.path for asked in server.asked].count("/model.gguf") == len(server.asked)


def test_on_a_terminal_it_shows_a_bar(server: ScriptedServer, tmp_path: Path) -> None:
    server.rate = 2e6
    target = tmp_path / "model.gguf"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environ(target, MODEL=server.put("/model.gguf", MODEL)), stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 10_000):
            shown += data
    except OSError:
        pass  # the terminal is gone: the end of it
    finally:
        os.close(ours)

    assert process.wait(timeout=30) == 0
    assert b"\r[#" in shown
    assert b"MB/s" in shown
    assert target.read_bytes() == MODEL


def test_errors_come_with_their_hints(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_MODEL_PATH", str(tmp_path / "model.gguf"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.faults.append(lambda asked: Answer(401, {}))

    code = fetch.run(argparse.Namespace(uri="hf://owner/repo/model.gguf"))

    assert code == 1
    said = capsys.readouterr().err
    assert "error: hf://owner/repo/model.gguf@main: the hub answered 401." in said
    assert "hint: The repository is private, gated or does not exist. Set HF_TOKEN" in said


@pytest.mark.parametrize("columns", [20, 60, 200])
@pytest.mark.parametrize("done", [0, 50_000_000, 100_000_000])
def test_a_bar_stays_on_its_line(columns: int, done: int) -> None:
    line = fetch.bar(Progress(done, 100_000_000, 1e6, 50.0), columns)

    assert len(line) == columns - 1


def test_before_the_size_is_known_there_is_no_bar() -> None:
    assert fetch.bar(Progress(0, None, None, None), 60).strip() == "asking for the model"
