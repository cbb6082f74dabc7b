"""`python -m benchmarks NAME… [options]`: one benchmark or several; options come last and go to each."""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys

NAMES = (
    "imports", "cold", "small", "fetch", "decode", "warm", "memory", "tuning", "schema", "api", "soak", "lambda",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="NAME… [options]", help=", ".join(NAMES))


def run(arguments: argparse.Namespace) -> int:
    """The benchmarks in turn; the first failure's exit status, or 0."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments.words))
    unknown = [name for name in names if name not in NAMES]
    if not names or unknown:
        print(
            f"There is no benchmark {unknown[0]!r}." if unknown else "Which benchmark?", "There are", ", ".join(NAMES)
        )
        return 2
    for name in names:
        # `lambda` is Python's own word: no module can be imported by that name.
        benchmark = importlib.import_module(f"benchmarks.{'lambda_' if name == 'lambda' else name}")
        parser = argparse.ArgumentParser(prog=f"bench {name}", description=benchmark.__doc__)
        benchmark.add_arguments(parser)
        status = benchmark.run(parser.parse_args(arguments.words[len(names) :]))
        if status:
            return int(status)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
