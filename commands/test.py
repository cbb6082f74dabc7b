"""Run the tests; arguments are pytest's."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pytest_arguments", nargs="*", metavar="pytest argument")
    # Without a prefix nothing is an option of ours: -k and --help are pytest's.
    parser.prefix_chars = ""


def run(arguments: argparse.Namespace) -> int:
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments.pytest_arguments])
