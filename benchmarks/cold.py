"""From a server's start to its first streamed token, beside its peers.

The clock starts before the process does. The client connects as soon as somebody listens, asks again while the answer
is "not ready" (503), and stops the clock at the first text in the stream. It takes a part of one CPU for that.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from benchmarks import page_cache, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.plot import draw
from benchmarks.workloads import MAX_TOKENS, MODELS, N_CTX, SHORT_SYSTEM, THREADS, WORKLOADS, Workload, model_path
from tests.platforms.functions import WRAPPED, emulated, url_event

LAMBDA = "ours, Lambda emulator"
FIRST = "To the first token"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", metavar="NAME", help=f"{' or '.join(MODELS)}, or a path; default both"
    )
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="default both")
    parser.add_argument("--only", action="append", metavar="TEXT", help="servers whose name holds this text")
    parser.add_argument(
        "--page-cache", choices=("warm", "dropped"), default="warm", help="the model's file (default warm)"
    )
    add_round_arguments(parser, 5)


def run(arguments: argparse.Namespace) -> int:
    everybody = [
        server for server in servers.available() if not arguments.only or any(t in server.name for t in arguments.only)
    ]
    reference = next((server.name for server in everybody if server.name == "llama-server"), None)
    tables = []
    for model_name in arguments.model or MODELS:
        model = model_path(model_name)
        for workload_name in arguments.workload or WORKLOADS:
            workload = WORKLOADS[workload_name]
            title = f"{model.stem}, {workload_name}, page cache {arguments.page_cache}"
            print(title, flush=True)
            tables += measure(title, everybody, model, workload, reference, arguments)
    notes = [
        f"N_CTX {N_CTX}, {THREADS} threads, at most {MAX_TOKENS} tokens out, temperature 0, one request per start.",
        *(f"{server.name}: {server.note}." for server in everybody),
        f"{LAMBDA}: our runtime loop, from the first invocation, which starts it, to a whole answer of one token.",
        f"{servers.BARE}: benchmarks/peers/bare.py, no HTTP and no template: the floor, not a server.",
    ]
    dropped = ["page-cache-dropped"] if arguments.page_cache == "dropped" else []
    path = report("-".join(["cold", *(arguments.workload or []), *dropped]), tables, notes)
    draw(path.with_suffix(".svg"), [table for table in tables if table.title.startswith(FIRST)])
    return 0


def measure(
    title: str,
    everybody: list[servers.Server],
    model: Path,
    workload: Workload,
    reference: str | None,
    arguments: argparse.Namespace,
) -> list[Table]:
    """Seconds to the first token, and to the last; and of a snapshot's loading, where there is one."""
    if found := next(model.parent.glob("*.snapshot"), None):
        raise SystemExit(f"{found}: remove it, or those who shall read the prompt find it read.")
    loads: list[dict[str, float]] = []
    answers: dict[tuple[str, float], servers.Answer] = {}  # by name and seconds to the first token

    def first_token(name: str, ask: Callable[[], servers.Answer]) -> float:
        (page_cache.warm if arguments.page_cache == "warm" else page_cache.drop)(model)
        answer = ask()
        answers[name, answer.first] = answer
        return answer.first

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt, tempfile.TemporaryDirectory() as snapshots:
        prompt.write(workload.chatml())
        prompt.flush()
        subjects: dict[str, Callable[[], servers.Answer]] = {
            server.name: functools.partial(_ask_server, server, model, workload) for server in everybody
        }
        ours = next((server for server in everybody if server.is_ours), None)
        if ours is not None and workload.name == "long":
            _make_snapshot(ours, model, workload, Path(snapshots))
            subjects[f"{ours.name}, snapshot"] = functools.partial(
                _ask_with_snapshot, ours, model, workload, Path(snapshots), loads
            )
        subjects[servers.BARE] = lambda: servers.bare(model, Path(prompt.name))[0]
        if not arguments.only or any(text in LAMBDA for text in arguments.only):
            subjects[LAMBDA] = lambda: _ask_lambda(model, workload)
        timed = {name: functools.partial(first_token, name, ask) for name, ask in subjects.items()}
        firsts = interleaved(timed, arguments)
    kept = [
        {name: answers[name, first] for name, first in values.items() if name != LAMBDA} for values in firsts.values
    ]
    lasts = [{name: answer.last for name, answer in values.items()} for values in kept]
    return [
        Table(f"{FIRST}: {title}", "s", firsts.values, reference, firsts.notes()),
        Table(f"To the last token: {title}", "s", lasts, reference, _differences(kept)),
        *([Table(f"The snapshot: {title}", "ms", loads)] if loads else []),
    ]


def _ask_server(server: servers.Server, model: Path, workload: Workload) -> servers.Answer:
    with servers.Running(server, model) as running:
        return servers.answer(running, server.body(workload))


def _ask_with_snapshot(
    server: servers.Server, model: Path, workload: Workload, snapshots: Path, loads: list[dict[str, float]]
) -> servers.Answer:
    """Also how long the snapshot took to load, as the server's own timeline has it."""
    with servers.Running(server, model, snapshots) as running:
        answer = servers.answer(running, server.body(workload))
        with urlopen(f"http://127.0.0.1:{running.port}/health") as response:
            phases = {phase["phase"]: phase["ms"] for phase in json.load(response)["cold_start"]}
    if "snapshot" not in phases:
        raise RuntimeError(f"{server.name} did not use the snapshot")
    loads.append({"found, checked and loaded": phases["snapshot"]})
    return answer


def _ask_lambda(model: Path, workload: Workload) -> servers.Answer:
    body = {"system": workload.system, "context": workload.user, "max_tokens": 1, "temperature": 0}
    environ = {"MODEL": str(model), "N_CTX": str(N_CTX), "N_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory() as directory, emulated(Path(directory), WRAPPED, **environ) as function:
        started = time.monotonic()
        answer = function.invoke(url_event("/chat", body))
        seconds = time.monotonic() - started
    if answer.get("statusCode") != 200:
        raise RuntimeError(f"{LAMBDA} answered {answer}")
    return servers.Answer(seconds, seconds, 1, json.loads(answer["body"])["content"])


def _make_snapshot(server: servers.Server, model: Path, workload: Workload, snapshots: Path) -> None:
    """A prefix that had to be read twice is kept: another system prompt comes between."""
    with servers.Running(server, model, snapshots) as running:
        for system in (workload.system, SHORT_SYSTEM, workload.system):
            asked = workload._replace(system=system, user="What is a good soil for beans?")
            servers.answer(running, server.body(asked, max_tokens=1))
    if not any(snapshots.iterdir()):
        raise SystemExit(f"{server.name} saved no snapshot in {snapshots}.")


def _differences(rounds: list[dict[str, servers.Answer]]) -> tuple[str, ...]:
    """A note for each subject that did other work than the bare script: an answer of another length or text."""
    answers = {name: answer for values in rounds for name, answer in values.items()}
    if servers.BARE not in answers:
        return ()
    expected = answers[servers.BARE].text.strip()
    return tuple(
        f"{name} sent another text than the bare script, {answer.pieces} pieces: it rounds or samples differently."
        for name, answer in answers.items()
        if answer.text.strip() != expected
    )
