"""Tokens per second: our engine, beside llama-bench of the same source and the bare decode loop."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import llama_server, page_cache, servers
from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.servers import ROOT, clean_environment
from benchmarks.workloads import N_CTX, THREADS, WORKLOADS, add_model_argument, model_path

TOKENS = 128

# Run in a process of its own, as everybody else is. The first answer warms it up, the second is timed. SmolLM2 might
# end its answer early: then fewer tokens are divided by less time.
OUR_ENGINE = f"""
import json, sys, time
import model_loader
from llamafn.deadline import Deadline
from llamafn.engine.sampling import Sampling
from llamafn.settings import Settings

model, system, user = json.load(sys.stdin)
settings = Settings.from_env({{"MODEL": model, "N_CTX": "{N_CTX}", "N_THREADS": "{THREADS}"}})
engine = model_loader.get_model(settings, Deadline.never())
messages = [{{"role": "system", "content": system}}, {{"role": "user", "content": user}}]
for tokens in (8, {TOKENS}):
    generation = engine.generate(
        engine.prompt(messages), Sampling(temperature=0), max_tokens=tokens, deadline=Deadline.never()
    )
    moments = []
    with generation:
        for _ in generation:
            moments.append(time.perf_counter())
print((generation.completion_tokens - 1) / (moments[-1] - moments[0]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_round_arguments(parser, 5)


def run(arguments: argparse.Namespace) -> int:
    model = model_path(arguments.model)
    page_cache.warm(model)
    notes = [
        f"{model.name}, {TOKENS} tokens, {THREADS} threads, greedy, weights not repacked.",
        "Our engine makes text of every token, checks for stops and the deadline, and has the abort callback armed.",
        "The bare loop samples and makes text; its thread pool lasts, as the others' do.",
        "llama-bench decodes random tokens after as many others, and samples nothing.",
        "It and the bare loop use flash attention, llama.cpp's default.",
    ]
    tables = [_table(workload, depth, model, arguments) for workload, depth in (("short", 58), ("long", 1100))]
    report("decode", tables, notes)
    return 0


def _table(name: str, depth: int, model: Path, arguments: argparse.Namespace) -> Table:
    workload = WORKLOADS[name]
    asked = json.dumps([str(model), workload.system, workload.user])
    llama_bench = llama_server.find("llama-bench")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write(workload.chatml())
        prompt.flush()
        subjects: dict[str, Callable[[], float]] = {
            "our engine": lambda: _our_engine(asked),
            "bare loop": lambda: _bare(model, Path(prompt.name)),
        }
        if llama_bench is not None:
            subjects["llama-bench"] = lambda: _llama_bench(llama_bench, model, depth)
        rounds = interleaved(subjects, arguments)
    reference = "bare loop" if llama_bench is None else "llama-bench"
    title = f"Decoding after {depth} tokens, {model.stem}"
    return Table(title, "tokens per second", rounds.values, reference, rounds.notes())


def _our_engine(asked: str) -> float:
    command = [sys.executable, "-c", OUR_ENGINE]
    found = subprocess.run(
        command, input=asked, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return float(found.stdout)


def _bare(model: Path, prompt: Path) -> float:
    # With a thread pool that lasts, as llama-bench has one.
    moments = servers.bare(model, prompt, f"tokens={TOKENS}", "poll=50")[1]
    return (TOKENS - 1) / (moments["end"] - moments["first_token"])


def _llama_bench(binary: Path, model: Path, depth: int) -> float:
    options = [
        "-p",
        "0",
        "-n",
        str(TOKENS),
        "-d",
        str(depth),
        "-t",
        str(THREADS),
        "-r",
        "1",
        "-o",
        "json",
        "--repack",
        "0",
    ]
    command = [str(binary), "-m", str(model), *options]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return float(json.loads(found.stdout)[0]["avg_ts"])
