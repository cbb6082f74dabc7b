"""An arm64 Python under qemu's emulation of a CPU, where both are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from commands.kept_build import cache_root
from commands.portable_engine import Recipe


def arm64_python() -> Path:
    """That of the directory that QEMU_LD_PREFIX names: `.ci/arm64-python` makes it. Skips the test without one."""
    python = Path(os.environ.get("QEMU_LD_PREFIX", "/nonexistent")) / "usr" / "bin" / "python3"
    if shutil.which("qemu-aarch64") is None or not python.exists():
        pytest.skip("no qemu-aarch64, or no Python in QEMU_LD_PREFIX")
    if not (cache_root(os.environ) / "engines" / Recipe.of("arm64").name).exists():
        pytest.skip("./build engine --arch arm64 has not been run")
    return python.resolve()


def run_emulated(
    cpu: str, arguments: Sequence[str | Path], directory: Path, environ: Mapping[str, str], given: str = ""
) -> str:
    """What Python, without its site packages, wrote to stdout in `directory` with nothing but `environ`."""
    prefix = os.environ["QEMU_LD_PREFIX"]
    done = subprocess.run(
        ["qemu-aarch64", "-cpu", cpu, "-L", prefix, arm64_python(), "-S", *arguments],
        input=given,
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unable to find CPU model" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout
