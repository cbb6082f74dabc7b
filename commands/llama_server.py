"""Build llama.cpp's own server and llama-bench, the peers that the benchmarks compare with."""

from __future__ import annotations

import argparse

from benchmarks import llama_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    llama_server.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return llama_server.run(arguments)
