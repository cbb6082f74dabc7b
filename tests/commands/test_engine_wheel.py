from __future__ import annotations

import importlib.metadata
from collections import Counter
from pathlib import Path, PurePath

import pytest

from commands import environment
from commands.engine_wheel import (
    Recipe,
    cache_directory,
    cpu_features,
    engine_wheel,
    has_compiler,
    required_version,
)
from commands.kept_build import likely_cause
from commands.terminal import CommandFailed

RECIPE = Recipe("0.3.36", ("-DGGML_NATIVE=ON",), "avx avx2", "linux x86_64 glibc 2.36", "system", ())

X86 = (
    "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse avx2 avx\nbugs\t: none\n\nprocessor\t: 1\nflags\t\t: sse\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0.3.37"},
        {"cmake_flags": ("-DGGML_NATIVE=OFF",)},
        {"cpu": "avx"},
        {"machine": "linux x86_64 glibc 2.31"},
        {"compiler": "zig"},
        {"variables": ("CFLAGS=-O1",)},
    ],
)
def test_whatever_a_wheel_depends_on_is_in_its_name(change: dict[str, str]) -> None:
    assert RECIPE._replace(**change).name != RECIPE.name  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "features"), [(X86, "avx avx2 sse"), (ARM, "asimd fp")])
def test_cpu_features_are_the_first_processors(tmp_path: Path, text: str, features: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text, encoding="utf-8")

    assert cpu_features(str(cpuinfo)) == features


def test_only_set_compiler_variables_count(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "CFLAGS": "-O1", "LDFLAGS": "", "EDITOR": "vi"}

    assert Recipe.of_this_machine(environ).variables == ("CFLAGS=-O1",)


def test_the_version_is_the_one_that_requirements_pin() -> None:
    assert required_version("jinja2==3.1.6\nllama-cpp-python==0.3.36  # the engine\n") == "0.3.36"
    with pytest.raises(CommandFailed, match="llama-cpp-python==<version>"):
        required_version("llama-cpp-python>=0.3\n")


@pytest.mark.parametrize(
    ("names", "environ", "found"),
    [
        ((), {}, False),
        (("gcc",), {}, False),
        (("gcc", "g++"), {}, True),
        (("clang", "clang++"), {}, True),
        (("gcc", "g++"), {"CC": "missing-cc"}, False),
        (("my-cc", "my-c++"), {"CC": "my-cc -m64", "CXX": "my-c++"}, True),
    ],
)
def test_a_compiler_is_one_for_c_and_one_for_cxx(
    tmp_path: Path, names: tuple[str, ...], environ: dict[str, str], found: bool
) -> None:
    for name in names:
        executable(tmp_path / name, "")

    assert has_compiler({"PATH": str(tmp_path), **environ}) is found


def test_a_cached_wheel_is_used_without_running_anything(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    wheel = cache_directory(environ) / RECIPE.name / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()

    assert engine_wheel(Path("/nonexistent/python"), RECIPE, environ) == wheel


# A stand-in for Python with pip: a build takes minutes, and a full disk or memory cannot be had on demand.
def test_a_finished_build_is_kept_and_nothing_else(tmp_path: Path) -> None:
    pip = (
        'for argument; do case $argument in --wheel-dir=*) d=${argument#*=};; esac; done; mkdir "$d"; touch "$d/a.whl"'
    )
    python = executable(tmp_path / "python", pip)
    environ = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    wheel = engine_wheel(python, RECIPE, environ)

    cache = cache_directory(environ)
    assert wheel == cache / RECIPE.name / "a.whl"
    assert {path.name for path in cache.iterdir()} == {RECIPE.name, f"{RECIPE.name}.lock"}


def test_a_failed_build_says_where_its_log_is_and_leaves_only_that(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "echo '[1/79] g++ -c a.cpp'; echo 'a.cpp: error: mistake'; exit 1")
    environ = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    with pytest.raises(
        CommandFailed, match=r"could not be built. The end of .*\.log:\n(?s:.*)a\.cpp: error"
    ) as failure:
        engine_wheel(python, RECIPE, environ)

    cache = cache_directory(environ)
    log = cache / f"{RECIPE.name}.log"
    assert str(log) in failure.value.message
    assert {path.name for path in cache.iterdir()} == {log.name, f"{RECIPE.name}.lock"}


def test_without_compiler_and_substitute_both_are_named(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "echo 'ERROR: No matching distribution found for ziglang'; exit 1")
    environ = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    with pytest.raises(CommandFailed, match=r"no C.. compiler on PATH .install g.. or clang.*ziglang") as failure:
        engine_wheel(python, RECIPE._replace(compiler="zig"), environ)

    assert failure.value.hint is not None
    assert "check the network" in failure.value.hint


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("fatal error: error writing to /tmp/ccX.s: No space left on device", "TMPDIR"),
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", "apt install g++"),
    ],
)
def test_the_output_of_a_failed_build_tells_its_cause(line: str, advice: str) -> None:
    assert advice in (likely_cause(f"[3/79] ...\n{line}\nninja: build stopped") or "")


def test_an_unknown_cause_is_not_guessed() -> None:
    assert likely_cause("a.cpp:3:1: error: expected ';'") is None


@pytest.mark.skipif(not environment.is_active(), reason="./build did not install this environment's engine")
def test_each_library_is_installed_once() -> None:
    files = importlib.metadata.files("llama-cpp-python") or []
    libraries = Counter(PurePath(file).name.partition(".so")[0] for file in files if ".so" in PurePath(file).name)

    assert libraries == {"libllama": 1, "libggml": 1, "libggml-base": 1, "libggml-cpu": 1}
