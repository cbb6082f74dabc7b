"""What a warm request costs beyond the engine's own time: HTTP, JSON, routing, the template, counting tokens.

One connection is kept. The engine's own time is what the answer says of itself: its wait, prefill, decoding. The
client's own work counts against us.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time

from benchmarks import page_cache, servers
from benchmarks.disturbance import OtherLoad, wait_for_quiet
from benchmarks.measure import Table, report
from benchmarks.workloads import THREADS, WORKLOADS, Workload, add_model_argument, model_path

REQUESTS = 60
TOKENS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, default="smollm2")
    parser.add_argument("--requests", type=int, default=REQUESTS, metavar="N", help=f"to each (default {REQUESTS})")


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    page_cache.warm(model)
    added: dict[str, list[float]] = {}
    disturbed = {}
    for server in servers.available():
        if not server.is_ours:
            continue  # no other answer says what its engine took
        with servers.Running(server, model) as running:
            connection, response = running.post(server.body(WORKLOADS["short"], TOKENS, stream=False))
            response.read()
            connection.close()
            wait_for_quiet(20)
            load = OtherLoad()
            added[server.name] = _requests(running, arguments.requests)
            disturbed[server.name] = load.share()  # the server's own time is in it: it still runs
    rounds = [dict(zip(added, values, strict=True)) for values in zip(*added.values(), strict=True)]
    notes = [
        f"{model.name}, {THREADS} threads, 60-token prompts with a known system part, {TOKENS} tokens out.",
        *(f"CPUs busy without the client's own, {name}: {share:.2f}." for name, share in disturbed.items()),
    ]
    report("warm", [Table("Beyond the engine's own time", "ms", rounds)], notes)
    return 0


def _requests(running: servers.Running, count: int) -> list[float]:
    """Milliseconds that each request took beyond the engine's, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=servers.PATIENCE_SECONDS)
    system, user = WORKLOADS["short"].system, WORKLOADS["short"].user
    added = []
    for number in range(count):
        # Every question is a new one: a prompt that is known to its end would not be read.
        body = running.server.body(Workload("", system, f"Question {number}: {user}"), TOKENS, stream=False)
        started = time.perf_counter()
        connection.request("POST", running.server.path, body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        milliseconds = (time.perf_counter() - started) * 1000
        added.append(milliseconds - sum(answer["timings"].values()))
    connection.close()
    return added
