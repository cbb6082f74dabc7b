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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from commands.kept_build import built_once, cache_root, run_logged
from commands.terminal import CommandFailed, step
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

    def build(directory: Path, log: Path) -> Path:
        return _build(python, recipe, environ, directory, log)

    return next(built_once(cache_directory(environ), recipe.name, build).glob("*.whl"))


def cache_directory(environ: Mapping[str, str]) -> Path:
    return cache_root(environ) / "wheels"


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


def _build(python: Path, recipe: Recipe, environ: Mapping[str, str], directory: Path, log: Path) -> Path:
    """Build the wheel, and return the directory that holds it and nothing else."""
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
        run_logged(argv, environ, log, compiler_progress(show), failure="the engine could not be built")
    return directory / "finished"


def compiler_progress(show: Callable[[str], None]) -> Callable[[str], None]:
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
        run_logged(pip, environ, log, failure=failure)
    tools = zig_tools(site / "ziglang" / "zig", directory)
    archiver = (f"-DCMAKE_AR={tools['ar']}", f"-DCMAKE_RANLIB={tools['ranlib']}")
    return {
        "CC": tools["cc"],
        "CXX": tools["c++"],
        "CMAKE_ARGS": f"{environ['CMAKE_ARGS']} {shlex.join(archiver)}",
        "ZIG_GLOBAL_CACHE_DIR": str(directory / "zig-cache"),
    }


# zig knows no -march: CMake's `-march=armv8.2-a+dotprod+fp16` is its `-mcpu=generic+v8_2a+dotprod+fullfp16`.
ZIG_TOOL = """\
#!/bin/sh
for argument do
    shift
    case $argument in
        -march=armv*) argument=$(echo "$argument" | sed -E {translation}) ;;
    esac
    set -- "$@" "$argument"
done
exec {zig} {tool} {target} "$@"
"""
ARM_TRANSLATION = (
    r"s/^-march=armv([0-9])-a/-mcpu=generic+v\1a/; "
    r"s/^-march=armv([0-9])\.([0-9])-a/-mcpu=generic+v\1_\2a/; "
    r"s/\+fp16/+fullfp16/"
)


def zig_tools(zig: Path, directory: Path, target: str = "") -> dict[str, str]:
    """Scripts in `directory` that make zig the compiler (cc, c++), for `target`, and the archiver (ar, ranlib)."""
    tools = {}
    for tool in ("cc", "c++", "ar", "ranlib"):
        script = directory / f"zig-{tool}"
        targeted = f"-target {target}" if target and tool in ("cc", "c++") else ""
        text = ZIG_TOOL.format(
            translation=shlex.quote(ARM_TRANSLATION), zig=shlex.quote(str(zig)), tool=tool, target=targeted
        )
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
        tools[tool] = str(script)
    return tools
