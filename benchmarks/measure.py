"""Runs things in turn and says what came out: medians, spread, ratios within a round, and on what machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.disturbance import OtherLoad, wait_for_quiet

RESULTS = Path(__file__).parent / "results"


class Summary(NamedTuple):
    """Of one subject's runs. `low` and `high` are the first and third quartile."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        digits = 3 if self.median < 1 else 2 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def summary(values: Sequence[float]) -> Summary:
    """The median and the quartiles; of a single value, that value."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(middle, low, high, len(values))


def ratio(rounds: Sequence[Mapping[str, float]], subject: str, reference: str) -> Summary | None:
    """subject / reference within each round: a machine that is slow for a while slows both. None if never both."""
    both = [values[subject] / values[reference] for values in rounds if subject in values and reference in values]
    return summary(both) if both else None


def add_round_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"runs of each (default {rounds})")
    parser.add_argument(
        "--patience", type=float, default=20, metavar="SECONDS", help="wait so long for a quiet machine (default 20)"
    )
    parser.add_argument(
        "--attempts", type=int, default=3, metavar="N", help="runs of which the least disturbed counts (default 3)"
    )


class Rounds(NamedTuple):
    """What each subject took in each round, and how much of one CPU others took meanwhile (the same keys).

    `failures` has the last reason of each subject that failed in a round.
    """

    values: list[dict[str, float]]
    disturbed: list[dict[str, float]]
    failures: dict[str, str]

    def notes(self) -> tuple[str, ...]:
        failures = (f"{name} failed: {reason}" for name, reason in self.failures.items())
        return (self._disturbance(), *failures)

    def _disturbance(self) -> str:
        shares = [share for disturbed in self.disturbed for share in disturbed.values()]
        if not shares:
            return "No run succeeded."
        return (
            f"Others took {statistics.median(shares):.2f} of a CPU during the median run, {max(shares):.2f} during the "
            "worst one that was kept."
        )


def interleaved(subjects: Mapping[str, Callable[[], float]], arguments: argparse.Namespace) -> Rounds:
    """Each subject once a round. The order turns by one each round, so that nobody always follows the same neighbour.

    A run waits up to `--patience` seconds for the machine to be quiet, and is repeated if others took more than a tenth
    of a CPU meanwhile; of `--attempts` runs the least disturbed counts. A subject that fails is left out of that round,
    and the reason is printed.
    """
    names = list(subjects)
    results = Rounds([], [], {})
    for number in range(arguments.rounds):
        turn = number % len(names)
        values: dict[str, float] = {}
        disturbed: dict[str, float] = {}
        for name in names[turn:] + names[:turn]:
            for _ in range(arguments.attempts):
                wait_for_quiet(arguments.patience)
                load = OtherLoad()
                try:
                    value = subjects[name]()
                except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
                    results.failures[name] = str(error).partition("\n")[0]
                    print(f"  round {number + 1}: {name} failed: {str(error)[-300:]}", flush=True)
                    break
                share = load.share()
                if share < disturbed.get(name, float("inf")):
                    values[name], disturbed[name] = value, share
                if share < 0.1:
                    break
        results.values.append(values)
        results.disturbed.append(disturbed)
        said = "  ".join(f"{name} {values[name]:.4g}" for name in names if name in values)
        print(f"  round {number + 1}/{arguments.rounds}: {said}", flush=True)
    return results


def summaries(rounds: Sequence[Mapping[str, float]]) -> dict[str, Summary]:
    names = dict.fromkeys(name for values in rounds for name in values)
    return {name: summary([values[name] for values in rounds if name in values]) for name in names}


def machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(total.split()[1]) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "llama_cpp_python": _version("llama-cpp-python"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The checkout's commit, with `+` if files were changed since; `unknown` outside a checkout."""
    git = ["git", "-C", str(RESULTS.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        others = ["--", ":/", ":!/benchmarks/results"]  # what was measured before changes nothing
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", *others], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")


class Table(NamedTuple):
    """One table of a report: what was measured, its unit, the rounds, and what the ratios are to."""

    title: str
    unit: str
    rounds: list[dict[str, float]]
    reference: str | None = None
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        ratios = self.reference is not None
        lines = [f"### {self.title}", ""]
        lines += [f"| | {self.unit}, median (quartiles) | runs |" + (f" ratio to {self.reference} |" if ratios else "")]
        lines += ["|---|---|---|" + ("---|" if ratios else "")]
        for name, found in summaries(self.rounds).items():
            line = f"| {name} | {found} | {found.runs} |"
            if self.reference is not None:
                line += f" {ratio(self.rounds, name, self.reference) or '–'} |"
            lines.append(line)
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def report(name: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> Path:
    """Print the tables and write them to results/<date>-<name>.json and .md; the JSON's path."""
    today = datetime.date.today().isoformat()
    where = machine()
    heading = (
        f"## {name}, {today}, commit {commit()}\n\n"
        f"{where['cpu']}, {where['cpus']} CPUs, {where['memory_gb']} GB, Linux {where['kernel']}, "
        f"Python {where['python']}, llama-cpp-python {where['llama_cpp_python']}; "
        f"load average at the end {where['load_average']}.\n"
    )
    text = (
        "\n".join([heading, *(table.markdown() for table in tables), *(f"- {note}" for note in notes)]).rstrip() + "\n"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{today}-{name}.json"
    path.with_suffix(".md").write_text(text)
    path.write_text(
        json.dumps(
            {
                "name": name,
                "date": today,
                "commit": commit(),
                "command": ["./build", *sys.argv[1:]],
                "machine": where,
                "tables": [
                    table._asdict()
                    | {"summaries": {key: value._asdict() for key, value in summaries(table.rounds).items()}}
                    for table in tables
                ],
                "notes": list(notes),
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    print(f"Written: {path}")
    return path
