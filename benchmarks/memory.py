"""Peak resident memory beyond the model's file, of a server's whole process tree, from its start to an answer's end.

process_memory.py says how it is counted.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks import page_cache, process_memory, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.workloads import MAX_TOKENS, N_CTX, THREADS, WORKLOADS, Workload, add_model_argument, model_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    add_round_arguments(parser, 3)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    workload = WORKLOADS[arguments.workload]
    page_cache.warm(model)
    everybody = servers.available()
    subjects = {server.name: functools.partial(peak_mb, server, model, workload) for server in everybody}
    arguments.attempts = 1  # neighbours change the time that it takes, not the memory
    rounds = interleaved(subjects, arguments)
    notes = [
        f"{model.name} ({model.stat().st_size / 1e6:.0f} MB), {arguments.workload} prompt; MB are 10^6 bytes.",
        f"N_CTX {N_CTX}, {THREADS} threads, {MAX_TOKENS} tokens out.",
        "Counted: Pss of every mapping but the model's, of the server and all below it: anonymous and shared memory,",
        "and file pages of interpreter and libraries, of which those that other processes map too count in part.",
        f"Sampled every {process_memory.INTERVAL_SECONDS * 1000:.0f} ms: a shorter peak is missed.",
        *(f"{server.name}: {server.note}." for server in everybody),
    ]
    title = f"Peak memory beyond the model's file, {model.stem}"
    report("memory", [Table(title, "MB", rounds.values, "llama-server")], notes)
    return 0


def peak_mb(server: servers.Server, model: Path, workload: Workload) -> float:
    with servers.Running(server, model) as running, process_memory.PeakMemory(running.process.pid, model) as memory:
        servers.answer(running, server.body(workload))
    return memory.peak.beyond_model
