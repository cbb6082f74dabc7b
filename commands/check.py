"""Check lint, formatting, types and generated documentation."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from commands.terminal import seconds, stopwatch

ROOT = Path(__file__).resolve().parent.parent


class Check(NamedTuple):
    """A program that fails if something does not hold, and what mends that."""

    what: str
    argv: tuple[str, ...]
    mended_by: str


CHECKS = (
    Check("lint", ("-m", "ruff", "check"), ".venv/bin/ruff check --fix mends some of it"),
    Check("formatting", ("-m", "ruff", "format", "--check"), ".venv/bin/ruff format mends it"),
    Check("types", ("-m", "mypy"), "the code or its annotations have to change"),
    Check("the Lambda template", ("build", "template", "--check"), "template.yaml has to change"),
    Check("generated documentation", ("build", "docs", "--check"), "./build docs mends it"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> int:
    failed = []
    for check in CHECKS:
        elapsed = stopwatch()
        # All of them, whichever fails: one run says everything.
        status = subprocess.call([sys.executable, *check.argv], cwd=ROOT)
        print(f"{check.what}: {'failed' if status else 'good'} ({seconds(elapsed())})", flush=True)
        if status:
            failed.append(check)
    for check in failed:
        print(f"{check.what} failed: {check.mended_by}.")
    return 1 if failed else 0
