"""The smallest machine: one CPU and 512 MB by control group (root only), ours beside the Flask service.

The page cache is dropped first: the model's pages are then the group's, and count.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks import page_cache, servers
from benchmarks.cgroup import ControlGroup
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.workloads import WORKLOADS, add_model_argument, model_path

CPUS = 1
MEMORY_BYTES = 512 << 20
SMALL_N_CTX = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_round_arguments(parser, 5)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    peaks: list[dict[str, float]] = []
    firsts = interleaved(
        {
            server.name: functools.partial(first_token, server, model, peaks)
            for server in (servers.GUNICORN, servers.FLASK)
        },
        arguments,
    )
    report(
        "small",
        [
            Table("To the first token", "s", firsts.values, servers.FLASK.name, firsts.notes()),
            Table("The group's peak of memory, file pages included", "MB", peaks),
        ],
        [
            f"{model.name}, {CPUS} CPU, {MEMORY_BYTES >> 20} MiB, N_CTX {SMALL_N_CTX}, one thread, short prompt.",
            "The page cache was dropped before each run. A run in which a process was killed counts as failed.",
        ],
    )
    return 0


def first_token(server: servers.Server, model: Path, peaks: list[dict[str, float]]) -> float:
    """Seconds from the start to the first token; RuntimeError if the kernel killed a process of it.

    A second answer must come, too: a server that was killed and started again would not be noticed in the first.
    """
    page_cache.drop(model)
    with ControlGroup(CPUS, MEMORY_BYTES) as group:
        limited = servers.sized(server, SMALL_N_CTX, CPUS, group.enter)
        with servers.Running(limited, model) as running:
            first = servers.answer(running, limited.body(WORKLOADS["short"])).first
            servers.answer(running, limited.body(WORKLOADS["short"]))
            peaks.append({server.name: group.peak_bytes / 1e6})
            if group.kills:
                raise RuntimeError(f"{group.kills} processes were killed for want of memory")
    return first
