"""The API's own cost: refusing, a stream's first text beyond the engine's first token, several clients at once."""

from __future__ import annotations

import argparse
import json
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

from benchmarks import llama_server, page_cache, servers
from benchmarks.measure import Rounds, Table, add_round_arguments, interleaved, report
from benchmarks.workloads import N_CTX, THREADS, WORKLOADS, Workload, add_model_argument, model_path

REFUSED = 1000
CLIENTS, PARALLEL, TOKENS = 8, 4, 32
PATH = "/v1/chat/completions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, default="smollm2")
    add_round_arguments(parser, rounds=3)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    page_cache.warm(model)
    ours = servers.GUNICORN._replace(
        path=PATH,
        command=lambda model, port: [*servers.GUNICORN.command(model, port)[:-1], "--max-requests", "0", "handler:app"],
        environment=lambda model, port: {**servers.GUNICORN.environment(model, port), "PARALLEL": str(PARALLEL)},
    )
    subjects = {"ours": ours}
    binary = llama_server.find("llama-server")
    if binary is not None:
        several = ("--parallel", str(PARALLEL), "--ctx-size", str(N_CTX * PARALLEL))
        flags = (*several, *llama_server.BEST_FLAGS, "--no-repack")
        subjects["llama-server"] = servers._llama_server("llama-server", binary, flags)

    first: dict[str, list[float]] = {name: [] for name in subjects}

    def together(name: str) -> float:
        with servers.Running(subjects[name], model) as running:
            servers.answer(running, subjects[name].body(WORKLOADS["short"], 1))
            speed, late = _together(running)
            first[name].append(late)
            return speed

    rounds: Rounds = interleaved(
        {name: (lambda name=name: together(name)) for name in subjects},  # type: ignore[misc]
        arguments,
    )
    with servers.Running(ours, model) as running:
        servers.answer(running, ours.body(WORKLOADS["short"], 1))
        refused = [{"ours": _refused_per_second(running.port)} for _ in range(arguments.rounds)]
        overhead = [{"ours": value} for value in _first_byte(running, 20 * arguments.rounds)]
    reference = "llama-server" if binary is not None else None
    late = [dict(zip(first, values, strict=True)) for values in zip(*first.values(), strict=True)]
    report(
        "api",
        [
            Table(f"{CLIENTS} clients at once, {PARALLEL} side by side", "tokens/s", rounds.values, reference),
            Table("Their worst time to the first token", "s", late, reference),
            Table("Requests refused, one connection", "1/s", refused),
            Table("A stream's first text beyond the engine's first token", "ms", overhead),
        ],
        [f"{model.name}, {THREADS} threads, {TOKENS} tokens out, temperature 0.", *rounds.notes()],
    )
    return 0


def _together(running: servers.Running) -> tuple[float, float]:
    """Tokens per second of all clients, and the longest that one waited for its first."""
    answers: list[tuple[float, int]] = []

    def client(number: int) -> None:
        work = WORKLOADS["short"]
        body = running.server.body(Workload("", work.system, f"Question {number}: {work.user}"), TOKENS)
        began = time.monotonic() - running.started
        said = servers.answer(running, body)
        answers.append((said.first - began, said.pieces))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    return sum(pieces for _, pieces in answers) / seconds, max(first for first, _ in answers)


def _refused_per_second(port: int) -> float:
    body = json.dumps({"messages": [], "n": 2}).encode()
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        began = time.monotonic()
        for _ in range(REFUSED):
            connection.request("POST", PATH, body)
            response = connection.getresponse()
            response.read()
            assert response.status == 400
        return REFUSED / (time.monotonic() - began)


def _first_byte(running: servers.Running, count: int) -> list[float]:
    """Milliseconds from a stream's request to its first text, less what the engine says it took to the first token."""
    work = WORKLOADS["short"]
    beyond = []
    with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        for number in range(count):
            body = running.server.body(Workload("", work.system, f"Question {number}: {work.user}"), 4)
            began = time.monotonic()
            connection.request("POST", PATH, body)
            response = connection.getresponse()
            first, last = 0.0, b""
            for line in response:
                if line.startswith(b"data: {"):
                    first = first or time.monotonic() - began
                    last = line
            timings = json.loads(last[6:])["timings"]
            beyond.append(first * 1000 - timings["queue_ms"] - timings["prefill_ms"])
    return beyond
