from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from commands.engine_wheel import zig_tools
from commands.kept_build import cache_root
from commands.portable_engine import ARCHITECTURES, Recipe, keep_variants, portable_engine, this_architecture
from commands.terminal import CommandFailed
from tests.commands.qemu import arm64_python, run_emulated
from tests.servers import ROOT

# What every Amazon Linux has. Everything else that the engine needs has to be inside it.
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
SYSTEM_LIBRARIES |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def libraries(request: pytest.FixtureRequest) -> list[Path]:
    """Each architecture's libraries; another one than this machine's only if they have been built."""
    recipe = Recipe.of(request.param)
    if request.param != this_architecture() and not (cache_root(os.environ) / "engines" / recipe.name).exists():
        pytest.skip(f"./build engine --arch {request.param} has not been run")
    return sorted(portable_engine(recipe, os.environ).glob("llama_cpp/lib/*"))


def test_there_is_one_copy_of_each_library_and_each_variant(libraries: list[Path]) -> None:
    (architecture,) = [
        found for found in ARCHITECTURES.values() if any(found.variants[0] in file.name for file in libraries)
    ]

    variants = {f"libggml-cpu-{variant}.so" for variant in architecture.variants}
    assert {file.name for file in libraries} == {"libllama.so", "libggml.so", "libggml-base.so", *variants}


def test_the_libraries_run_where_they_are_meant_to(libraries: list[Path]) -> None:
    names = {file.name for file in libraries}
    machines = set()
    for library in libraries:
        with library.open("rb") as file:
            elf = ELFFile(file)
            machines.add(elf["e_machine"])
            dynamic = next(section for section in elf.iter_sections() if isinstance(section, DynamicSection))
            tags = {tag.entry.d_tag: tag for tag in dynamic.iter_tags()}
            needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}  # type: ignore[attr-defined]
            versions = {
                version.name
                for section in elf.iter_sections()
                if isinstance(section, GNUVerNeedSection)
                for _, auxiliaries in section.iter_versions()
                for version in auxiliaries
            }
            assert needed <= SYSTEM_LIBRARIES | names, library
            if needed & names:  # found beside this one, wherever that is
                assert tags["DT_RUNPATH"].runpath == "$ORIGIN", library  # type: ignore[attr-defined]
            assert elf.get_section_by_name(".symtab") is None, f"{library} is not stripped"
            assert elf.get_section_by_name(".debug_info") is None, f"{library} is not stripped"
        glibc = [tuple(map(int, re.findall(r"\d+", version))) for version in versions if version.startswith("GLIBC_")]
        assert max(glibc) <= (2, 26), library
    assert len(machines) == 1


def test_no_path_of_the_machine_that_built_it_is_inside(libraries: list[Path]) -> None:
    home = os.fsencode(cache_root(os.environ))

    for library in libraries:
        assert home not in library.read_bytes(), library


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        ("cortex-a72", "armv8.0_1"),
        ("neoverse-n1", "armv8.2_2"),  # Graviton 2
        ("neoverse-v1", "armv8.6_1"),  # Graviton 3
        ("max", "armv8.6_2"),
    ],
)
def test_each_arm_cpu_picks_its_variant(tmp_path: Path, cpu: str, variant: str) -> None:
    arm64_python()
    script = (
        "import llamafn.engine.bindings\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libggml-cpu-' in line})"
    )
    engine = portable_engine(Recipe.of("arm64"), os.environ)
    environ = {"PYTHONPATH": f"{ROOT}:{engine}", "PYTHONDONTWRITEBYTECODE": "1"}

    mapped = run_emulated(cpu, ["-c", script], tmp_path, environ)

    assert Path(mapped.strip()).name == f"libggml-cpu-{variant}.so"


def test_the_same_architecture_has_one_name_for_each_recipe() -> None:
    whole, baseline = Recipe.of("x86_64"), Recipe.of("x86_64", baseline=True)

    assert whole.name != baseline.name
    assert whole.name != whole._replace(glibc="2.28").name
    assert whole.name.startswith(f"{whole.version}-x86_64-")


def test_other_variants_are_taken_out(tmp_path: Path) -> None:
    cmake_lists = tmp_path / "CMakeLists.txt"
    cmake_lists.write_text(
        "if (x)\n"
        "    ggml_add_cpu_backend_variant(x64)\n"
        "    ggml_add_cpu_backend_variant(sandybridge SSE42 AVX)\n"
        "    ggml_add_cpu_backend_variant(armv8.2_1    DOTPROD)\n"
        "endif()\n"
    )

    keep_variants(cmake_lists, ("x64", "armv8.2_1"))

    assert re.findall(r"variant\(([\w.]+)", cmake_lists.read_text()) == ["x64", "armv8.2_1"]
    with pytest.raises(CommandFailed, match="no CPU variant avx1024"):
        keep_variants(cmake_lists, ("x64", "avx1024"))


@pytest.mark.parametrize(
    ("flag", "translated"),
    [
        ("-march=armv8-a", "-mcpu=generic+v8a"),
        ("-march=armv8.6-a+dotprod+fp16+sve+i8mm", "-mcpu=generic+v8_6a+dotprod+fullfp16+sve+i8mm"),
        ("-mavx2", "-mavx2"),
        ('-DNAME="two words"', '-DNAME="two words"'),
    ],
)
def test_zig_is_told_the_cpu_in_its_own_words(tmp_path: Path, flag: str, translated: str) -> None:
    # In zig's place, a program that writes its arguments.
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    zig.chmod(0o755)
    tools = zig_tools(zig, tmp_path, target="aarch64-linux-gnu.2.26")

    with os.popen(f"{tools['cc']} -c '{flag}' a.c") as output:
        assert output.read().splitlines() == ["cc", "-target", "aarch64-linux-gnu.2.26", "-c", translated, "a.c"]
