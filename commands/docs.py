"""Write the documentation that is generated from the code."""

from __future__ import annotations

import argparse
from pathlib import Path

from llamafn.settings import VARIABLES, Variable

STANDARD_LIBRARY_ONLY = True

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"

CONFIGURATION_HEAD = """\
<!-- Written by ./build docs from llamafn/settings.py: change it there. -->
# Configuration

Everything is set with environment variables. An empty one counts as unset. A value that cannot be used stops the start
with one message that lists every such variable.

| variable | default | accepts | meaning |
|---|---|---|---|
"""

CONFIGURATION_FOOT = """
Read as everywhere else, and not listed above: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` (a proxy that takes
`CONNECT`, at `http://host:port` or `http://user:password@host:port`), `SSL_CERT_FILE` and `SSL_CERT_DIR` (authorities
that sign certificates), and AWS's own for credentials, profiles and the region.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")


def run(arguments: argparse.Namespace) -> int:
    status = 0
    for path, text in generated().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is out of date.")
            status = 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"Wrote {path.relative_to(ROOT)}.")
    return status


def generated() -> dict[Path, str]:
    """Each generated file and what has to be in it."""
    return {CONFIGURATION: CONFIGURATION_HEAD + "".join(map(_row, VARIABLES)) + CONFIGURATION_FOOT}


def _row(variable: Variable) -> str:
    default = f"{variable.default:g}" if isinstance(variable.default, float) else variable.default
    cells = (f"`{variable.name}`", variable.default_said or f"`{default}`", variable.rule, variable.meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"
