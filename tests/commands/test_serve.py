from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import serve
from commands.terminal import CommandFailed

ROOT = Path(__file__).resolve().parents[2]

# `./build serve` without making .venv first: these tests run in whatever environment has the packages.
SCRIPT = """
import argparse, sys
from commands import serve
parser = argparse.ArgumentParser()
serve.add_arguments(parser)
sys.exit(serve.run(parser.parse_args()))
"""


class Served:
    """A server started as `./build serve` starts it, on a free port."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, "--port=0", *arguments],
                cwd=ROOT,
                env={**os.environ, "PRELOAD": "0"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def curl_line(self) -> str:
        """Waits until the line to try is printed."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and self.process.poll() is None:
            for line in self.output.read_text().splitlines():
                if line.startswith("  curl "):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line to try was printed:\n{self.output.read_text()}")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture(params=["gunicorn", "functions-framework"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "output", *(["--emulator"] if request.param == "functions-framework" else []))
    yield served
    if served.process.poll() is None:
        served.end(signal.SIGTERM)


def test_the_printed_line_names_the_port_that_answers(served: Served) -> None:
    line = served.curl_line()

    url = re.search(r"http://127\.0\.0\.1:[1-9]\d*", line)
    assert url is not None
    assert url[0] + "/chat " in line
    with urllib.request.urlopen(url[0] + "/health", timeout=30) as answer:
        assert answer.status == 200


def test_an_interrupt_ends_the_server_and_frees_the_port(served: Served) -> None:
    url = re.search(r"http://127\.0\.0\.1:(\d+)", served.curl_line())
    assert url is not None

    assert served.end(signal.SIGINT) == 0
    assert "Traceback" not in served.output.read_text()
    serve.listen("127.0.0.1", int(url[1])).close()


def test_a_taken_port_is_said_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandFailed, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use") as f:
            serve.listen("127.0.0.1", port)
    assert f.value.hint == "--port takes another port, and --port 0 any that is free."


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8001/chat"), ("::1", "http://[::1]:8001/chat")]
)
def test_the_greeting_can_be_pasted(host: str, url: str) -> None:
    assert f"  curl {url} -H 'Content-Type: application/json' -d '{{" in serve.greeting(host, 8001, 0.5)


def test_a_server_on_every_address_is_reached_on_this_one() -> None:
    assert serve.reachable("0.0.0.0") == "127.0.0.1"
    assert serve.reachable("192.0.2.7") == "192.0.2.7"
