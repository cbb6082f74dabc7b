"""The engine that runs on every CPU of an architecture and on every Linux with glibc 2.26 (Amazon Linux 2) or later.

Any Linux machine builds it for any architecture, without Docker: PyPI has the compiler (zig: Clang with every glibc's
headers), CMake and Ninja. It holds one CPU backend for each CPU family, from which llama.cpp picks the best one at run
time. A build is kept in `${XDG_CACHE_HOME:-~/.cache}/llamafn/engines/` under a name made of all that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from commands.engine_wheel import compiler_progress, required_version, zig_tools
from commands.kept_build import built_once, cache_root, run_logged
from commands.terminal import CommandFailed, step
from llamafn.cpu_quota import usable_cpus

ROOT = Path(__file__).resolve().parent.parent

# Pinned, since the same inputs have to give the same bytes.
TOOLS = ("ziglang==0.17.1", "cmake==4.4.4", "ninja==1.13.2")
GLIBC = "2.26"


class Architecture(NamedTuple):
    """A processor architecture and the CPU backends that are built for it."""

    name: str  # as AWS says it
    machine: str  # as Linux and compilers say it
    # llama.cpp's names, ggml/src/CMakeLists.txt. The first needs nothing beyond the architecture, so that one always
    # loads; a CPU that has more than the best one here just uses that.
    variants: tuple[str, ...]
    baseline: tuple[str, ...]  # the least that is fast on what clouds run


ARCHITECTURES = {
    "x86_64": Architecture(
        "x86_64",
        "x86_64",
        # sse42: virtual machines with a conservative CPU model. haswell (AVX2): AMD Rome and Milan, old Xeons.
        # skylakex (AVX-512), cascadelake (its VNNI): every Xeon since, Zen 4 and 5. Left out:
        # cannonlake and icelake add VBMI, which no kernel names; cooperlake and zen4 add BF16, of use to BF16 models
        # alone; sapphirerapids adds AMX, which serverless machines do not show; sandybridge, ivybridge and piledriver
        # are gone from clouds.
        ("x64", "sse42", "haswell", "skylakex", "cascadelake"),
        ("x64", "haswell"),
    ),
    "arm64": Architecture(
        "arm64",
        "aarch64",
        # armv8.2_2: Graviton 2, Ampere Altra. armv8.6_1 (SVE, i8mm): Graviton 3. armv8.6_2 (SVE2): Graviton 4, Axion.
        # Left out: armv8.2_1 and armv8.2_3 are no server's, armv9.2 adds SME, which no server has.
        ("armv8.0_1", "armv8.2_2", "armv8.6_1", "armv8.6_2"),
        ("armv8.0_1", "armv8.2_2"),
    ),
}

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_NUMBER=0",
    # libllama.so and no libllama.so.0 beside it: two copies in one process are a segmentation fault.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DCMAKE_SHARED_LINKER_FLAGS=-s -Wl,--gc-sections",
    "-DCMAKE_MODULE_LINKER_FLAGS=-s -Wl,--gc-sections",
)
COMPILER_FLAGS = "-ffunction-sections -fdata-sections"

# What of the Python package is needed beside the libraries. Its own __init__, which imports 18,000 lines, is not.
MODULES = ("llama_cpp.py", "_ctypes_extensions.py")
LICENSES = {"LICENSE.md": "LICENSE.llama-cpp-python", "vendor/llama.cpp/LICENSE": "LICENSE.llama.cpp"}


def this_architecture() -> str:
    """The name of this machine's, or x86_64 on one that we have no engine for."""
    machine = platform.machine()
    return next((found.name for found in ARCHITECTURES.values() if machine in (found.name, found.machine)), "x86_64")


class Recipe(NamedTuple):
    """Everything that a built engine depends on."""

    version: str  # llama-cpp-python's
    architecture: Architecture
    variants: tuple[str, ...]
    glibc: str = GLIBC
    cmake_flags: tuple[str, ...] = CMAKE_FLAGS
    compiler_flags: str = COMPILER_FLAGS
    tools: tuple[str, ...] = TOOLS
    modules: tuple[str, ...] = MODULES

    @classmethod
    def of(cls, architecture: str, *, baseline: bool = False) -> Recipe:
        version = required_version((ROOT / "requirements.txt").read_text(encoding="utf-8"))
        found = ARCHITECTURES[architecture]
        return cls(version, found, found.baseline if baseline else found.variants)

    @property
    def name(self) -> str:
        """`0.3.36-x86_64-` and 16 hexadecimal digits of everything else."""
        return f"{self.version}-{self.architecture.name}-{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"


def portable_engine(recipe: Recipe, environ: Mapping[str, str]) -> Path:
    """A directory that holds the package `llama_cpp` as it is deployed; from the cache, or built.

    Raises:
        CommandFailed: the build failed; the message says where its log is.
    """

    def build(directory: Path, log: Path) -> Path:
        return _build(recipe, environ, directory, log)

    return built_once(cache_root(environ) / "engines", recipe.name, build)


def _build(recipe: Recipe, environ: Mapping[str, str], directory: Path, log: Path) -> Path:
    failure = "the portable engine could not be built"
    python = directory / "tools" / "bin" / "python"
    with step("Installing zig, CMake and Ninja"):
        run_logged([sys.executable, "-m", "venv", directory / "tools"], environ, log, failure=failure)
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        run_logged([*pip, "install", "--no-deps", *recipe.tools], environ, log, failure=failure)
    with step(f"Fetching llama-cpp-python {recipe.version}"):
        requirement = (
            f"--dest={directory}",
            "--no-deps",
            "--no-binary=llama-cpp-python",
            f"llama-cpp-python=={recipe.version}",
        )
        run_logged([*pip, "download", *requirement], environ, log, failure=failure)
    source = _unpack(next(directory.glob("llama_cpp_python-*.tar.gz")), directory)
    keep_variants(source / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt", recipe.variants)

    machine = recipe.architecture.machine
    tools = zig_tools(
        next((directory / "tools").glob("lib/python*/site-packages/ziglang/zig")),
        directory,
        target=f"{machine}-linux-gnu.{recipe.glibc}",
    )
    # Paths of this machine must not get into the libraries (llama.cpp's assertions hold file names).
    flags = f"{recipe.compiler_flags} -ffile-prefix-map={source}=llama-cpp-python"
    binaries = directory / "tools" / "bin"
    environ = {
        **{name: value for name, value in environ.items() if name not in ("CFLAGS", "CXXFLAGS", "LDFLAGS")},
        "PATH": f"{binaries}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "ZIG_GLOBAL_CACHE_DIR": str(directory / "zig-cache"),
        # Or the libraries report the commit of whatever repository the cache lies in.
        "GIT_DIR": os.devnull,
    }
    configure: list[str | Path] = [
        *(binaries / "cmake", "-G", "Ninja", "-S", source / "vendor" / "llama.cpp", "-B", directory / "build"),
        *recipe.cmake_flags,
        f"-DCMAKE_SYSTEM_PROCESSOR={machine}",
        *(f"-DCMAKE_{variable}={tools[tool]}" for variable, tool in TOOL_VARIABLES.items()),
        *(f"-DCMAKE_{language}_FLAGS={flags}" for language in ("C", "CXX", "ASM")),
    ]
    with step(f"Building llama.cpp for {recipe.architecture.name}, {', '.join(recipe.variants)}") as show:
        run_logged(configure, environ, log, failure=failure)
        make: list[str | Path] = [binaries / "cmake", "--build", directory / "build", "--target", "llama"]
        make += [f"--parallel={usable_cpus(environ)}"]
        run_logged(make, environ, log, compiler_progress(show), failure=failure)
    return _collect(source, directory / "build" / "bin", recipe, directory / "finished")


TOOL_VARIABLES = {"C_COMPILER": "cc", "CXX_COMPILER": "c++", "ASM_COMPILER": "cc", "AR": "ar", "RANLIB": "ranlib"}


def _unpack(archive: Path, directory: Path) -> Path:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(directory, filter="data")
        else:  # before Python 3.10.12; pip has checked the archive's hash
            tar.extractall(directory)
    return directory / archive.name.removesuffix(".tar.gz")


def keep_variants(cmake_lists: Path, variants: tuple[str, ...]) -> None:
    """Take the other CPU variants out of ggml's CMakeLists.txt: it has no option for that, and builds fourteen.

    Raises:
        CommandFailed: a variant is not there.
    """
    text = cmake_lists.read_text(encoding="utf-8")
    call = re.compile(r"^ *ggml_add_cpu_backend_variant\(([\w.]+)[^)]*\)\n", re.MULTILINE)
    missing = set(variants) - set(call.findall(text))
    if missing:
        raise CommandFailed(f"This llama.cpp has no CPU variant {', '.join(sorted(missing))}: see {cmake_lists}.")
    cmake_lists.write_text(call.sub(lambda found: found[0] if found[1] in variants else "", text), encoding="utf-8")


def _collect(source: Path, built: Path, recipe: Recipe, finished: Path) -> Path:
    """The package `llama_cpp` with one copy of each library, where its loader and llama.cpp's look for them."""
    package = finished / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    for module in recipe.modules:
        shutil.copyfile(source / "llama_cpp" / module, package / module)
    # Without one, a llama_cpp that is installed further down the path would be taken for the package.
    (package / "__init__.py").write_text('"""The low-level bindings, llama_cpp.llama_cpp, and nothing else."""\n')
    for path, name in LICENSES.items():
        shutil.copyfile(source / path, package / name)
    libraries = ["llama", "ggml", "ggml-base", *(f"ggml-cpu-{variant}" for variant in recipe.variants)]
    for library in libraries:
        shutil.copy(built / f"lib{library}.so", package / "lib")
    return finished
