"""A long run of good and bad requests, half of whose clients leave early: does memory grow, is a turn lost?"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.process_memory import descendants
from benchmarks.workloads import add_model_argument, model_path

SETTLED = 500  # requests after which memory is first read
GROWTH_PERCENT = 5.0
PATIENCE_SECONDS = 60.0

COUNT = [{"role": "user", "content": "Count from 1 to 5, separated by commas."}]
SCHEMA = {"type": "object", "properties": {"litres": {"type": "integer", "maximum": 9}}, "required": ["litres"]}


class Ask(NamedTuple):
    """A request, and the statuses that are right for it."""

    path: str
    body: bytes
    statuses: tuple[int, ...]


def _good(path: str, **body: Any) -> Ask:
    return Ask(path, json.dumps(body).encode(), (200, 429))


def _bad(path: str, body: bytes, *statuses: int) -> Ask:
    return Ask(path, body, statuses or (400,))


ASKS = (
    _good("/chat", context="¿Cuándo debo regar?", max_tokens=4),
    _good("/chat", context="How much water?", max_tokens=12, schema=SCHEMA),
    _good("/v1/chat/completions", messages=COUNT, max_tokens=4, stream=True, logprobs=True, top_logprobs=2),
    _good("/v1/chat/completions", messages=COUNT, max_tokens=3, logit_bias={"5": -10}),
    _good("/v1/completions", prompt="The rain", max_tokens=4, stream=True),
    _bad("/chat", b"{"),
    _bad("/chat", b"\xff"),
    _bad("/chat", b'{"context": ' + b"[" * 500 + b"]" * 500 + b"}"),
    _bad("/v1/chat/completions", b'{"messages": [], "n": 3, "other": 1}'),
    _bad("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "rain " * 3000}]}).encode()),
    _bad("/nothing", b"{}", 404),
    _bad("/chat", b" " * 1_100_000, 413),
)
# A client that leaves asks for more than it will wait for.
LONG = _good("/v1/chat/completions", messages=COUNT, max_tokens=400, stream=True, stop="never said")


class Result(NamedTuple):
    """What came of a run; memory is the worker's anonymous memory, in MB."""

    statuses: Counter[str]
    wrong: list[str]
    settled: float
    ended: float
    seconds: float

    @property
    def growth_percent(self) -> float:
        return (self.ended / self.settled - 1) * 100


def soak(port: int, worker: Callable[[], int], requests: int, *, settled: int = SETTLED, clients: int = 6) -> Result:
    """Send so many requests from so many clients. `worker` gives the process whose memory is read."""
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()

    def run(numbers: range) -> None:
        for number in numbers:
            chance = random.Random(number)
            ask = chance.choice(ASKS)
            if chance.random() < 0.5:
                said = _leave(port, chance.choice((LONG, ask)), chance.random())
            else:
                status = _wait(port, ask)
                said = str(status)
                if status not in ask.statuses:
                    wrong.append(f"{ask.path} {ask.body[:80]!r}: {status}, expected {ask.statuses}")
            with lock:
                statuses[said] += 1

    def all_of(first: int, last: int) -> None:
        threads = [
            threading.Thread(target=run, args=(range(first + client, last, clients),)) for client in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _wait_until_idle(port)

    began = time.monotonic()
    all_of(0, settled)
    before = anonymous_megabytes(worker())
    all_of(settled, requests)
    return Result(statuses, wrong, before, anonymous_megabytes(worker()), time.monotonic() - began)


def anonymous_megabytes(pid: int) -> float:
    """What the process holds beside files: the model, which is mapped, is not part of it. See proc_pid_status(5)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith("RssAnon:"))


def _wait(port: int, ask: Ask) -> int:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
        # A body that is too large is refused before all of it is read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", ask.path, ask.body)
        response = connection.getresponse()
        response.read()
        return response.status


def _leave(port: int, ask: Ask, chance: float) -> str:
    """Leave before the answer's first byte, or after it."""
    head = f"POST {ask.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ask.body)}\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as client,
        contextlib.suppress(OSError),
    ):
        client.sendall(head + ask.body)
        if chance < 0.5:
            client.recv(1)
            return "left midway"
        time.sleep(chance * 0.05)
    return "left at once"


def _wait_until_idle(port: int) -> None:
    """Every turn is given back, and nobody waits.

    Raises:
        TimeoutError: a turn is lost, or the queue is stuck.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
            connection.request("GET", "/health")
            model = json.loads(connection.getresponse().read())["model"]
        if model.get("answering") == 0 == model.get("queued"):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"after {PATIENCE_SECONDS:g} s there is still something under way: {model}")
        time.sleep(0.02)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, default="smollm2")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    from tests.servers import GUNICORN, serving

    model = model_path(arguments.model)
    # Without recycling, which would hide what a worker loses.
    command = [*GUNICORN[:-1], "--max-requests", "0", GUNICORN[-1]]
    environ = {"MODEL": str(model), "N_CTX": "512", "PARALLEL": "2"}
    with tempfile.TemporaryDirectory() as directory, serving(command, Path(directory), **environ) as server:
        result = soak(server.port, lambda: descendants(server.process.pid)[-1], arguments.requests)
    print(f"{arguments.requests:,} requests in {result.seconds:.0f} s: {dict(sorted(result.statuses.items()))}")
    print(
        f"anonymous memory: {result.settled:.1f} MB after {SETTLED}, {result.ended:.1f} MB at the end, "
        f"{result.growth_percent:+.1f} %"
    )
    for line in result.wrong[:10]:
        print(f"wrong: {line}")
    return 1 if result.wrong or result.growth_percent > GROWTH_PERCENT else 0
