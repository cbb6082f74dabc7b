"""What `import handler` costs a fresh interpreter, over one that does nothing."""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time

from benchmarks.measure import Table, add_round_arguments, interleaved, report, summary
from benchmarks.servers import ROOT, clean_environment

BARE = "pass"
HANDLER = "import handler"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_round_arguments(parser, 25)


def run(arguments: argparse.Namespace) -> int:
    statements = {"python -c pass": BARE, "import handler": HANDLER}
    for statement in statements.values():
        milliseconds(statement)  # writes the bytecode, warms the page cache
    subjects = {name: functools.partial(milliseconds, statement) for name, statement in statements.items()}
    rounds = interleaved(subjects, arguments)
    over = [values["import handler"] - values["python -c pass"] for values in rounds.values if len(values) == 2]
    count = len(modules(HANDLER) - modules(BARE))
    report(
        "imports",
        [Table("A fresh interpreter", "ms", rounds.values, notes=rounds.notes())],
        [f"`import handler` adds {summary(over)} ms (the difference within each round) and {count} modules."],
    )
    return 0


def milliseconds(statement: str) -> float:
    """From before the interpreter's start to its end, in the checkout's root. It ends at once: no clean-up is timed."""
    program = f"{statement}\nimport os; os._exit(0)"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=clean_environment(), check=True)
    return (time.perf_counter() - started) * 1000


def modules(statement: str) -> set[str]:
    """The names in sys.modules after the statement."""
    program = f"{statement}\nimport sys; print(*sys.modules, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean_environment(), check=True, capture_output=True, text=True
    )
    return set(found.stdout.split())
