"""Make the deployment zip for AWS Lambda."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import tempfile
import zipfile
from pathlib import Path

from commands.assembly import Plan, assemble
from commands.portable_engine import ARCHITECTURES
from commands.terminal import CommandFailed, step, table

STANDARD_LIBRARY_ONLY = True

ROOT = Path(__file__).resolve().parent.parent
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
ZIPPED_LIMIT, UNPACKED_LIMIT = 50 << 20, 250 << 20
# The oldest time that a zip can say; the real ones would make every zip another.
NO_TIME = (1980, 1, 1, 0, 0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", choices=ARCHITECTURES, default="x86_64", help="default: %(default)s")
    parser.add_argument("--python", default="3.13", metavar="3.x", help="the managed runtime; default: %(default)s")
    parser.add_argument("--with-boto3", action="store_true", help="the pinned one, and not the runtime's")
    parser.add_argument("--output", type=Path, help="default: dist/llamafn.zip, which template.yaml deploys")


def run(arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"3\.\d\d", arguments.python):
        raise CommandFailed(f"--python {arguments.python}: expected a minor version, as 3.13.")
    output = arguments.output or ROOT / "dist" / "llamafn.zip"
    plan = Plan("lambda", arguments.arch, arguments.python, with_boto3=arguments.with_boto3)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "package"
        assemble(plan, directory, os.environ)
        with step(f"Zipping {arguments.arch} for Python {arguments.python}"):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_zip(directory, output)
    sizes = sizes_in(output)
    print(table([("", "bytes", "zipped"), *((name, f"{size:,}", f"{zipped:,}") for name, size, zipped in sizes)]))
    print(f"\n{output}\nsha256 {hashlib.sha256(output.read_bytes()).hexdigest()}")
    _, unpacked, zipped = sizes[-1]
    if unpacked > UNPACKED_LIMIT or zipped > ZIPPED_LIMIT:
        raise CommandFailed("That is more than Lambda takes: 50 MB zipped, 250 MB unpacked.")
    return 0


def write_zip(directory: Path, output: Path) -> None:
    """Zip the files in `directory`; the same files always give the same bytes."""
    unfinished = output.with_name(f"{output.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(path for path in directory.rglob("*") if path.is_file()):
                info = zipfile.ZipInfo(str(file.relative_to(directory)), NO_TIME)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.create_system = 3  # Unix, or the permissions do not count
                info.external_attr = (0o100755 if os.access(file, os.X_OK) else 0o100644) << 16
                archive.writestr(info, file.read_bytes())
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def sizes_in(archive: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and zipped bytes of each part, the largest first, and of the whole file."""
    parts: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            part = _part(info.filename)
            size, zipped = parts.get(part, (0, 0))
            parts[part] = (size + info.file_size, zipped + info.compress_size)
    rows = sorted(((name, *sizes) for name, sizes in parts.items()), key=lambda row: -row[1])
    return [*rows, ("all", sum(size for _, size, _ in rows), archive.stat().st_size)]


def _part(name: str) -> str:
    if name.endswith(".so"):
        return name.rpartition("/")[2]
    if name.endswith(".pyc"):
        return "bytecode"
    if ".dist-info/" in name:
        return "licences"
    top, separator, _ = name.partition("/")
    return f"{top}{separator}" if top != "handler.py" and top != "model_loader.py" else "llamafn/"
