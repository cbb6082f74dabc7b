"""Build the engine that runs on every CPU of an architecture, and say where it is."""

from __future__ import annotations

import argparse
import os

from commands.portable_engine import ARCHITECTURES, Recipe, portable_engine, this_architecture
from commands.terminal import table

STANDARD_LIBRARY_ONLY = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default=this_architecture(), help="the processor, default this machine's"
    )
    parser.add_argument(
        "--baseline", action="store_true", help="only the CPU variants that matter most: half the time to build"
    )


def run(arguments: argparse.Namespace) -> int:
    engine = portable_engine(Recipe.of(arguments.arch, baseline=arguments.baseline), os.environ)
    files = sorted(path for path in engine.rglob("*") if path.is_file())
    print(table([(str(path.relative_to(engine)), f"{path.stat().st_size:,}") for path in files]))
    print(engine)
    return 0
