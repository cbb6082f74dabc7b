"""From a server's start to its first streamed token, beside its peers.

The clock starts before the process does. The client connects as soon as somebody listens, asks again while the answer
is "not ready" (503), and stops the clock at the first text in the stream. It takes a part of one CPU for that.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import page_cache, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.workloads import MAX_TOKENS, MODELS, N_CTX, SHORT_SYSTEM, THREADS, WORKLOADS, Workload, model_path


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
        f"{servers.BARE}: benchmarks/peers/bare.py, no HTTP and no template: the floor, not a server.",
    ]
    dropped = ["page-cache-dropped"] if arguments.page_cache == "dropped" else []
    report("-".join(["cold", *(arguments.workload or []), *dropped]), tables, notes)
    return 0


def measure(
    title: str,
    everybody: list[servers.Server],
    model: Path,
    workload: Workload,
    reference: str | None,
    arguments: argparse.Namespace,
) -> list[Table]:
    """Two tables: seconds to the first token, and to the last."""
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
            subjects[f"{ours.name}, snapshot"] = functools.partial(_ask_server, ours, model, workload, Path(snapshots))
        subjects[servers.BARE] = lambda: servers.bare(model, Path(prompt.name))[0]
        timed = {name: functools.partial(first_token, name, ask) for name, ask in subjects.items()}
        firsts = interleaved(timed, arguments)
    kept = [{name: answers[name, first] for name, first in values.items()} for values in firsts.values]
    lasts = [{name: answer.last for name, answer in values.items()} for values in kept]
    return [
        Table(f"To the first token: {title}", "s", firsts.values, reference, (firsts.note(),)),
        Table(f"To the last token: {title}", "s", lasts, reference, _differences(kept)),
    ]


def _ask_server(
    server: servers.Server, model: Path, workload: Workload, snapshots: Path | None = None
) -> servers.Answer:
    with servers.Running(server, model, snapshots) as running:
        return servers.answer(running, server.body(workload))


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
