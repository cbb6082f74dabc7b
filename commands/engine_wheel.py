"""The llama-cpp-python wheel for this machine's CPU: built once, kept outside the checkout, never built again.

llama-cpp-python is published as source only, and pip's own cache of built wheels knows neither flags nor CPU: a wheel
from there may die with an illegal instruction. So the wheel is kept in `${XDG_CACHE_HOME:-~/.cache}/llamafn/wheels/`,
under a name made of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from commands.terminal import CommandFailed, ProcessFailed, follow, lock, step
from llamafn.cpu_quota import usable_cpus

ROOT = Path(__file__).resolve().parent.parent

CMAKE_FLAGS = (
    "-DLLAVA_BUILD=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_NATIVE=ON",
    # A wheel cannot hold symlinks, so libllama.so, .so.0 and .so.0.5.0 would be three copies. Loading two of them is a
    # segmentation fault. This leaves one.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
)
# scikit-build-core's settings. llama.cpp installs itself into lib/ and include/ as well, beside llama_cpp/lib/.
# https://scikit-build-core.readthedocs.io/en/latest/reference/configs.html
SKBUILD = {"SKBUILD_WHEEL_EXCLUDE": "lib/**;include/**", "SKBUILD_NINJA_MAKE_FALLBACK": "false"}
# What the compilers and CMake read beside the flags above.
COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS")

# What a failed build's output says, and what mends it.
CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "The disk is full: the build needs 1 GB in the temporary directory (TMPDIR names another one).",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed|signal 9|unable to spawn|out of memory",
        "The compiler ran out of memory: CMAKE_BUILD_PARALLEL_LEVEL=1 needs the least, about 1 GB.",
    ),
    (
        r"No CMAKE_C(XX)?_COMPILER could be found|is not able to compile a simple test program",
        "There is no working C++ compiler: install g++ or clang (Debian, Ubuntu: apt install g++).",
    ),
    (
        r"No matching distribution found|Temporary failure in name resolution|Connection refused|Read timed out",
        "pip could not fetch a package: check the network, and pip's own configuration (pip config list).",
    ),
)


class Recipe(NamedTuple):
    """Everything that a built wheel depends on."""

    version: str
    cmake_flags: tuple[str, ...]
    cpu: str  # the features that a native build uses
    machine: str  # architecture and C library
    compiler: str  # "system", or "zig" where there is none
    variables: tuple[str, ...]  # NAME=value of the compiler variables that are set

    @classmethod
    def of_this_machine(cls, environ: Mapping[str, str]) -> Recipe:
        return cls(
            version=required_version((ROOT / "requirements.txt").read_text(encoding="utf-8")),
            cmake_flags=CMAKE_FLAGS,
            cpu=cpu_features(),
            machine=f"{sys.platform} {platform.machine()} {c_library()}",
            compiler="system" if has_compiler(environ) else "zig",
            variables=tuple(f"{name}={environ[name]}" for name in COMPILER_VARIABLES if environ.get(name)),
        )

    @property
    def name(self) -> str:
        """`0.3.36-` and 16 hexadecimal digits of everything else."""
        return f"{self.version}-{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"


def engine_wheel(python: Path, recipe: Recipe, environ: Mapping[str, str]) -> Path:
    """The wheel that `recipe` describes, from the cache or, if it is not there, built by `python`'s pip.

    Raises:
        CommandFailed: the build failed; the message says where its log is.
    """
    cache = cache_directory(environ)
    cached = cache / recipe.name
    if wheel := _only_wheel(cached):
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache / f"{recipe.name}.lock", "building the engine"):
        if wheel := _only_wheel(cached):
            return wheel
        building = cache / f"{recipe.name}.building"
        shutil.rmtree(building, ignore_errors=True)  # what a build that was killed left behind
        building.mkdir()
        try:
            _build(python, recipe, environ, building, cache / f"{recipe.name}.log")
            # Renamed at the end, so that what is in the cache is always whole.
            os.replace(building / "finished", cached)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    wheel = _only_wheel(cached)
    assert wheel is not None
    return wheel


def cache_directory(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamafn" / "wheels"


def required_version(requirements: str) -> str:
    """The version of llama-cpp-python that requirements.txt pins."""
    match = re.search(r"^llama[-_]cpp[-_]python==(\S+)", requirements, re.MULTILINE)
    if match is None:
        raise CommandFailed("requirements.txt has no line llama-cpp-python==<version>: the engine must be pinned.")
    return match[1]


def cpu_features(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The first processor's model-independent feature list: `flags` on x86, `Features` on ARM.

    Without the file (macOS) it is the processor's name.
    """
    try:
        with open(cpuinfo, encoding="utf-8") as file:
            for line in file:
                name, _, features = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return " ".join(sorted(features.split()))
    except FileNotFoundError:
        pass
    return platform.processor()


def c_library() -> str:
    """`glibc 2.36`; empty where it says nothing. A home directory may be shared by machines and containers."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def has_compiler(environ: Mapping[str, str]) -> bool:
    """Whether there is a C and a C++ compiler: $CC and $CXX, or one of the names that CMake tries."""
    path = environ.get("PATH", os.defpath)
    return all(
        any(shutil.which(shlex.split(name)[0], path=path) for name in ([chosen] if chosen else usual))
        for chosen, usual in (
            (environ.get("CC"), ("cc", "gcc", "clang")),
            (environ.get("CXX"), ("c++", "g++", "clang++")),
        )
    )


def likely_cause(output: str) -> str | None:
    """What the user can do about a failed build, if its output tells."""
    return next((advice for pattern, advice in CAUSES if re.search(pattern, output, re.IGNORECASE)), None)


def _only_wheel(directory: Path) -> Path | None:
    return next(directory.glob("*.whl"), None)


def _build(python: Path, recipe: Recipe, environ: Mapping[str, str], directory: Path, log: Path) -> None:
    """Build the wheel into `directory`/finished. `log` is left behind only if it fails."""
    flags = [
        *recipe.cmake_flags,
        f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'commands' / 'engine_wheel.cmake'}",
        *shlex.split(environ.get("CMAKE_ARGS", "")),
    ]
    environ = {
        **environ,
        **SKBUILD,
        "CMAKE_ARGS": shlex.join(flags),
        # Ninja goes by the cores that it sees, which in a container are not the ones it may use.
        "CMAKE_BUILD_PARALLEL_LEVEL": environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(usable_cpus(environ)),
    }
    if recipe.compiler == "zig":
        environ |= _zig_compiler(python, directory, environ, log)
    requirement = f"llama-cpp-python=={recipe.version}"
    # Without its cache, or pip may hand out a wheel that it built with other flags.
    pip = (python, "-m", "pip", "wheel", "--verbose", "--no-cache-dir", "--no-deps", "--no-binary=llama-cpp-python")
    with step(f"Building {requirement} for this CPU, once (2 to 5 minutes on two cores)") as show:
        argv = (*pip, f"--wheel-dir={directory / 'finished'}", requirement)
        _run(argv, _compiler_progress(show), environ, log, failure="the engine could not be built")
    log.unlink()


def _run(
    argv: Sequence[str | Path], parse: Callable[[str], None], environ: Mapping[str, str], log: Path, *, failure: str
) -> None:
    try:
        follow(argv, parse, environ=environ, log=log)
    except ProcessFailed as error:
        tail = "\n".join(f"  {line}" for line in error.tail)
        hint = likely_cause(log.read_text(encoding="utf-8", errors="replace"))
        raise CommandFailed(f"{failure}. The end of {log}:\n{tail}", hint=hint) from error


def _compiler_progress(show: Callable[[str], None]) -> Callable[[str], None]:
    """Shows Ninja's [12/79]: each on a terminal, elsewhere one for each tenth."""
    tenths = -1

    def parse(line: str) -> None:
        nonlocal tenths
        counted = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if counted is None:
            return
        done, total = int(counted[1]), int(counted[2])
        if total < 20:  # CMake's own small trials of the compiler
            return
        if sys.stderr.isatty() or done * 10 // total > tenths:
            tenths = done * 10 // total
            show(f"{done}/{total}")

    return parse


def _zig_compiler(python: Path, directory: Path, environ: Mapping[str, str], log: Path) -> dict[str, str]:
    """The variables that make PyPI's `ziglang` the compiler: it is Clang with every C library's headers, in a wheel."""
    site = directory / "zig"
    pip = (python, "-m", "pip", "install", "--no-deps", f"--target={site}", "ziglang")
    failure = (
        "there is no C++ compiler on PATH (install g++ or clang), and its substitute, PyPI's ziglang, "
        "could not be installed"
    )
    with step("Installing ziglang, since there is no C++ compiler on PATH"):
        _run(pip, lambda _: None, environ, log, failure=failure)
    zig = shlex.quote(str(site / "ziglang" / "zig"))
    tools = {}
    for tool in ("cc", "c++", "ar", "ranlib"):
        script = directory / f"zig-{tool}"
        script.write_text(f'#!/bin/sh\nexec {zig} {tool} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        tools[tool] = str(script)
    archiver = (f"-DCMAKE_AR={tools['ar']}", f"-DCMAKE_RANLIB={tools['ranlib']}")
    return {
        "CC": tools["cc"],
        "CXX": tools["c++"],
        "CMAKE_ARGS": f"{environ['CMAKE_ARGS']} {shlex.join(archiver)}",
        "ZIG_GLOBAL_CACHE_DIR": str(directory / "zig-cache"),
    }
