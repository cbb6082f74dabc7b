"""AWS Lambda: INIT, the first answer, a warm /health and the first chunk of a stream.

INIT and answers are taken in AWS's own emulator, under AWS's client (awslambdaric) and under our runtime loop. It
buffers streams, so those go to the Runtime API of the tests.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import page_cache, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.workloads import N_CTX, THREADS, WORKLOADS, add_model_argument, model_path
from tests.platforms.functions import STOCK, WRAPPED, Emulator, emulated, running, url_event
from tests.platforms.runtime_api_server import RuntimeAPIServer

CLIENTS = {"awslambdaric": STOCK, "ours": WRAPPED}
GUNICORN = "gunicorn"
TOKENS = 4
WARM_INVOCATIONS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, default="smollm2")
    add_round_arguments(parser, 5)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    page_cache.warm(model)
    environ = {"MODEL": str(model), "N_CTX": str(N_CTX), "N_THREADS": str(THREADS)}
    inits: dict[tuple[str, float], float] = {}  # by client and seconds to the answer

    def first_answer(client: str) -> float:
        with tempfile.TemporaryDirectory() as directory, emulated(Path(directory), CLIENTS[client], **environ) as ours:
            started = time.monotonic()
            assert ours.invoke(_chat())["statusCode"] == 200
            seconds = time.monotonic() - started
            inits[client, seconds] = _init_milliseconds(ours)
            return seconds

    firsts = interleaved(
        {
            GUNICORN: functools.partial(_gunicorn_first_answer, model),
            **{client: functools.partial(first_answer, client) for client in CLIENTS},
        },
        arguments,
    )
    init_rounds = [{name: inits[name, took] for name, took in one.items() if name in CLIENTS} for one in firsts.values]
    warm = interleaved({client: functools.partial(_health_over_echo, client) for client in CLIENTS}, arguments)
    streams = interleaved({"ours": functools.partial(_chunk_after_token, environ)}, arguments)
    report(
        "lambda",
        [
            Table("INIT", "ms", init_rounds, "awslambdaric"),
            Table("From nothing to the first answer", "s", firsts.values, GUNICORN, firsts.notes()),
            Table("A warm /health, beyond the emulator's echo", "ms", warm.values, None, warm.notes()),
            Table(
                "First text of a stream, after the engine's first token", "ms", streams.values, None, streams.notes()
            ),
        ],
        [
            f"{model.name}, page cache warm, {THREADS} threads, 60-token prompt, {TOKENS} tokens out, no preload.",
            "The emulator starts the function at its first invocation: the clock starts there, gunicorn's with it.",
            "Streams: one thread, so that the Runtime API has the other CPU; median of nine in each run.",
            "The echo is a handler that returns its event, in the same emulator, under the same client.",
        ],
    )
    return 0


def _chat(*, stream: bool = False) -> dict[str, object]:
    workload = WORKLOADS["short"]
    body = {"system": workload.system, "context": workload.user, "max_tokens": TOKENS, "stream": stream}
    return url_event("/chat", body)


def _gunicorn_first_answer(model: Path) -> float:
    with servers.Running(servers.GUNICORN, model) as gunicorn:
        body = servers.GUNICORN.body(WORKLOADS["short"], TOKENS, stream=False)
        connection, response = gunicorn.post(body)
        response.read()
        connection.close()
        return time.monotonic() - gunicorn.started


def _init_milliseconds(emulator: Emulator) -> float:
    """`Init Duration` of the REPORT line means nothing; this line does."""
    found = re.search(r"INIT REPORT\(durationMs: ([\d.]+)\)", emulator.said())
    assert found is not None, emulator.said()
    return float(found[1])


def _health_over_echo(client: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        health = _median_milliseconds(Path(directory), client, "handler.handler")
        echo = _median_milliseconds(Path(directory), client, "tests.platforms.handlers.echo")
    return health - echo


def _median_milliseconds(directory: Path, client: str, handler: str) -> float:
    event = url_event("/health", method="GET")
    times = []
    with emulated(directory, CLIENTS[client], handler) as emulator:
        emulator.invoke(event)
        for _ in range(WARM_INVOCATIONS):
            started = time.perf_counter()
            emulator.invoke(event)
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def _chunk_after_token(environ: dict[str, str]) -> float:
    """Milliseconds from the engine's first token to the arrival of its text, the event's own way included."""
    api = RuntimeAPIServer(snapshot=False)
    # One thread: the Runtime API, which is outside of a real sandbox, needs a CPU, too.
    alone = {**environ, "N_THREADS": "1", "LAMBDA_STREAM": "1"}
    with tempfile.TemporaryDirectory() as directory, running(api, Path(directory), **alone):
        for _ in range(3):  # the prefix's snapshot is made on the way
            api.invoke(_chat(stream=True))
        return statistics.median(_one_chunk_after_token(api) for _ in range(9))


def _one_chunk_after_token(api: RuntimeAPIServer) -> float:
    sent = time.monotonic()
    outcome = api.invoke(_chat(stream=True))
    *_, summary, _done = outcome.streamed_body.decode().split("\n\n")[:-1]
    timings: dict[str, float] = json.loads(summary.removeprefix("data: "))["timings"]
    arrived = next(at for at, chunk in outcome.chunks if b'"content"' in chunk)  # before it come prelude and ping
    return (arrived - sent) * 1000 - timings["queue_ms"] - timings["prefill_ms"]
