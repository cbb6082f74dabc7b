"""Run benchmarks: what they measured goes to benchmarks/results/."""

from __future__ import annotations

import argparse

from benchmarks import __main__ as benchmarks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return benchmarks.run(arguments)
