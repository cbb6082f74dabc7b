"""Put all that runs into one directory, for servers, Lambda or Cloud Run functions."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from commands.assembly import PURPOSES, Plan, assemble
from commands.portable_engine import ARCHITECTURES, this_architecture

STANDARD_LIBRARY_ONLY = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    this_python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    parser.add_argument("directory", type=Path, help="where; empty or absent")
    parser.add_argument("--for", dest="purpose", choices=PURPOSES, default="server", help="default: %(default)s")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=this_architecture(), help="default: this machine's")
    parser.add_argument("--python", default=this_python, metavar="3.x", help="where it will run; default: %(default)s")
    parser.add_argument("--baseline", action="store_true", help="fewer CPU variants: see ./build engine --help")
    parser.add_argument(
        "--with-boto3", action="store_true", help="for a model in S3 whose credentials are not in the environment"
    )


def run(arguments: argparse.Namespace) -> int:
    plan = Plan(arguments.purpose, arguments.arch, arguments.python, arguments.baseline, arguments.with_boto3)
    assemble(plan, arguments.directory, os.environ)
    print(f"{arguments.directory}: all that runs on {arguments.arch} under Python {arguments.python}.")
    return 0
