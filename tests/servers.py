"""Real servers, each on a free port of the loopback interface that it chose itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60

GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "handler:app"]
FUNCTIONS_FRAMEWORK = [
    sys.executable,
    "-m",
    "functions_framework",
    "--source=handler.py",
    "--target=http",
    "--host=127.0.0.1",
    "--port=0",
]


def events_of(stream: bytes) -> list[Any]:
    """The events of a whole stream, without its pings."""
    *events, last = [line[6:] for line in stream.decode().split("\n\n") if line.startswith("data: ")]
    assert last == "[DONE]", stream
    return [json.loads(event) for event in events]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        return events_of(self.body)


class Server:
    """A server that has said where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.port = port

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def chat(self, **body: Any) -> Answer:
        return self.request("POST", "/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})

    def said(self) -> str:
        """The server's log so far."""
        return self.log.read_text()


@contextlib.contextmanager
def serving(command: list[str], directory: Path, **environ: str) -> Iterator[Server]:
    """Run a server until the end of the block; its log is kept in `directory`."""
    log = directory / f"server-{time.monotonic_ns()}.log"
    # One thread: two that wait for each other at every graph node crawl where other work has a core.
    defaults = {"GUNICORN_LOG_LEVEL": "info", "PYTHONUNBUFFERED": "1", "N_THREADS": "1"}
    environment = {**os.environ, **defaults, **environ}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield Server(process, log, _port_from(log, process))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def poll(what: str, ready: Any, seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask `ready()` until it is true, and give what it said."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)
    return found


def _port_from(log: Path, process: subprocess.Popen[bytes]) -> int:
    def port() -> int | None:
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        assert process.poll() is None, log.read_text()
        return None

    return int(poll(f"{process.args!r} listens", port))
