"""Which of llama.cpp's, Python's and the allocator's settings give the first token soonest: the bare script, varied."""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import page_cache, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.workloads import MAX_TOKENS, WORKLOADS, add_model_argument, model_path

REFERENCE = "as it is"


class Variant(NamedTuple):
    """What is changed: bare.py's options, the interpreter's, the environment."""

    options: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


GROUPS: dict[str, dict[str, Variant]] = {
    "weights": {
        "repacked": Variant(("use_extra_bufts=1",)),
        "read, not mapped": Variant(("load_mode=0",)),
        "read and repacked": Variant(("load_mode=0", "use_extra_bufts=1")),
    },
    "attention": {
        "flash attention off": Variant(("flash_attn_type=0",)),
        "flash attention on": Variant(("flash_attn_type=1",)),
    },
    "batch": {
        **{f"ubatch {n}": Variant((f"n_ubatch={n}", f"n_batch={max(n, 512)}")) for n in (32, 64, 128, 256, 1024, 2048)},
        "batch 512": Variant(("n_batch=512",)),
    },
    "threads": {
        **{f"own pool, poll {n}": Variant((f"poll={n}",)) for n in (0, 1, 10, 50, 100)},
        "abort callback armed": Variant(("abort=1",)),
        "one thread": Variant(("n_threads=1",)),
    },
    "process": {
        "-I": Variant(python=("-I",)),
        "-X frozen_modules=on": Variant(python=("-X", "frozen_modules=on")),
        "MALLOC_ARENA_MAX=1": Variant(environment=(("MALLOC_ARENA_MAX", "1"),)),
        "glibc.malloc.hugetlb=1": Variant(environment=(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),)),
        "malloc keeps what is freed": Variant(
            environment=(("MALLOC_TOP_PAD_", "67108864"), ("MALLOC_TRIM_THRESHOLD_", "1073741824"))
        ),
        "no mmap in malloc": Variant(
            environment=(("MALLOC_MMAP_THRESHOLD_", "1073741824"), ("MALLOC_TOP_PAD_", "67108864"))
        ),
    },
    "readahead": {
        "posix_fadvise(WILLNEED)": Variant(("readahead=1",)),
        "readahead() in a thread": Variant(("readahead=2",)),
        "read in a thread": Variant(("readahead=3",)),
        "read, not mapped": Variant(("load_mode=0",)),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    parser.add_argument("--group", action="append", choices=GROUPS, help="default all; readahead drops the page cache")
    add_round_arguments(parser, 7)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    tables = []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write(WORKLOADS[arguments.workload].chatml())
        prompt.flush()
        for group in arguments.group or GROUPS:
            tables += _measure(group, model, Path(prompt.name), arguments)
    notes = [
        f"{model.name}, {arguments.workload} prompt, {MAX_TOKENS} tokens out, two threads unless it says otherwise."
    ]
    report(f"tuning-{arguments.workload}", tables, notes)
    return 0


def _measure(group: str, model: Path, prompt: Path, arguments: argparse.Namespace) -> list[Table]:
    print(group, flush=True)
    runs: dict[tuple[str, float], dict[str, float]] = {}
    variants = {REFERENCE: Variant()} | GROUPS[group]

    def first_token(name: str) -> float:
        (page_cache.drop if group == "readahead" else page_cache.warm)(model)
        variant = variants[name]
        answer, moments = servers.bare(
            model, prompt, *variant.options, python=variant.python, environment=dict(variant.environment)
        )
        runs[name, answer.first] = {
            "To the first token, s": answer.first,
            "Interpreter and imports, ms": moments["imports"] * 1000,
            "Load, ms": (moments["load"] - moments["imports"]) * 1000,
            "Context, ms": (moments["context"] - moments["load"]) * 1000,
            "Prefill, ms": (moments["first_token"] - moments["prompt"]) * 1000,
            "Decode, tokens per second": (MAX_TOKENS - 1) / (moments["end"] - moments["first_token"]),
        }
        return answer.first

    rounds = interleaved({name: functools.partial(first_token, name) for name in variants}, arguments)
    kept = [{name: runs[name, first] for name, first in values.items()} for values in rounds.values]
    metrics = [metric for run in kept[:1] for metric in next(iter(run.values()))]
    tables = []
    for metric in metrics:
        what, _, unit = metric.rpartition(", ")
        values = [{name: run[metric] for name, run in round_.items()} for round_ in kept]
        tables.append(Table(f"{group}: {what.lower()}", unit, values, REFERENCE))
    return [tables[0]._replace(notes=rounds.notes()), *tables[1:]]
