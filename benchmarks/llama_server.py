"""llama-server and llama-bench, built from the llama.cpp source that llama-cpp-python's sdist carries.

The same source as our engine, for this very CPU, without OpenMP as our engine is: what differs is the program around
it. Statically linked, without TLS and the web page (whose assets would be downloaded): so it starts fastest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.cache import cache_directory

TARGETS = ("llama-server", "llama-bench")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
# What makes it answer soonest (docs/cold-start.md has the figures); for a short prompt --no-repack does, too.
BEST_FLAGS = ("--no-warmup", "--fit", "off")


def find(target: str) -> Path | None:
    """The program, where $LLAMA_SERVER says (llama-bench: beside it) or in the cache; None if it is nowhere."""
    named = os.environ.get("LLAMA_SERVER")
    if named:
        path = Path(named).resolve()
        if not path.is_file():
            raise SystemExit(f"LLAMA_SERVER={named}: there is no such file.")
        path = path if target == "llama-server" else path.with_name(target)
    else:
        path = _directory() / target
    return path if path.is_file() else None


def build(source: Path | None = None) -> Path:
    """The directory with both programs; they are built first (5 to 10 minutes on two cores) if the cache lacks them.

    `source` is llama-cpp-python's sdist; without one pip downloads it.
    """
    directory = _directory()
    if all((directory / target).is_file() for target in TARGETS):
        return directory
    version = metadata.version("llama-cpp-python")
    with tempfile.TemporaryDirectory(prefix="llamafn-llama-server-") as scratch:
        sdist = _download(version, Path(scratch)) if source is None else source
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        llama_cpp = Path(scratch, f"llama_cpp_python-{version}", "vendor", "llama.cpp")
        if not llama_cpp.is_dir():
            raise SystemExit(f"{sdist} does not hold llama_cpp_python-{version}/vendor/llama.cpp.")
        cmake, ninja = _tool("cmake", scratch), _tool("ninja", scratch)
        objects = Path(scratch, "objects")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run([cmake, "-S", llama_cpp, "-B", objects, *generator, *CMAKE_FLAGS], check=True)
        subprocess.run([cmake, "--build", objects, "--target", *TARGETS], check=True)
        for target in TARGETS:
            unfinished = directory / f".{target}.{os.getpid()}"
            shutil.copy2(objects / "bin" / target, unfinished)
            os.replace(unfinished, directory / target)
    return directory


def _directory() -> Path:
    version = metadata.version("llama-cpp-python")
    flags = hashlib.sha256(" ".join(CMAKE_FLAGS).encode()).hexdigest()[:8]
    return cache_directory("llama-server", f"{version}-{flags}")


def _download(version: str, directory: Path) -> Path:
    wanted = f"llama-cpp-python=={version}"
    options = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=True)
    return next(directory.glob("llama_cpp_python-*.tar.gz"))


def _tool(name: str, scratch: str) -> str:
    """cmake or ninja: from PATH, else from PyPI."""
    found = shutil.which(name)
    if found is not None:
        return found
    directory = Path(scratch, "tools")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory), name], check=True)
    return str(directory / "bin" / name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, metavar="SDIST", help="llama-cpp-python's .tar.gz (default: from PyPI)")


def run(arguments: argparse.Namespace) -> int:
    print(build(arguments.source) / "llama-server")
    return 0
