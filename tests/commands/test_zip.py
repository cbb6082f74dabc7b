from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import assembly
from commands.assembly import ALWAYS, PURPOSES, Plan, assemble, compile_bytecode, find_python, pins
from commands.portable_engine import ARCHITECTURES, this_architecture
from commands.terminal import CommandFailed
from commands.zip import sizes_in, write_zip
from tests.commands.qemu import arm64_python, run_emulated
from tests.servers import ROOT

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# The interpreter without this environment's packages: what the zip lacks must not be found elsewhere.
BARE_PYTHON = str(Path(sys.base_prefix) / "bin" / f"python{PYTHON}")

# What Lambda's bootstrap does, for one event.
INVOKE = """\
import json, sys
import handler
class Context:
    aws_request_id = "1"
    def get_remaining_time_in_millis(self):
        return 60000
answer = handler.handler(json.load(sys.stdin), Context())
maps = open("/proc/self/maps").read().split()
with open(sys.argv[1], "w") as file:  # the log has stdout
    json.dump({"answer": answer, "mapped": sorted({path for path in maps if path.endswith(".so")})}, file)
"""


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("assembled") / "package"
    assemble(Plan("lambda", this_architecture(), PYTHON), directory, os.environ)
    return directory


@pytest.fixture(scope="module")
def archive(assembled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "llamafn.zip"
    write_zip(assembled, path)
    return path


@pytest.fixture
def task_root(archive: Path, tmp_path: Path) -> Iterator[Path]:
    """The zip's content as Lambda lays it out: read-only."""
    directory = tmp_path / "task"
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            os.chmod(opened.extract(info, directory), info.external_attr >> 16)
    _make_writable(directory, False)
    yield directory
    _make_writable(directory, True)


def _make_writable(directory: Path, writable: bool) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200 if writable else path.stat().st_mode & ~0o222)


def invoke(task_root: Path, directory: Path, event: dict[str, Any], **environ: str) -> dict[str, Any]:
    """One invocation by a bare interpreter, in an environment that holds nothing but what is given."""
    output = directory / "found.json"
    done = subprocess.run(
        [BARE_PYTHON, "-S", "-c", INVOKE, output],
        input=json.dumps(event),
        cwd=task_root,
        env={"N_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def chat(text: str) -> dict[str, Any]:
    context = {"http": {"method": "POST"}, "domainName": "abc.lambda-url.eu-west-1.on.aws"}
    body = json.dumps({"context": text, "max_tokens": 4})
    return {"version": "2.0", "rawPath": "/chat", "requestContext": context, "headers": {}, "body": body}


def test_it_runs_from_a_read_only_directory_without_home_or_path(
    task_root: Path, tmp_path: Path, model_path: str
) -> None:
    found = invoke(task_root, tmp_path, chat("Hello"), MODEL=model_path)

    assert found["answer"]["statusCode"] == 200, found
    assert json.loads(found["answer"]["body"])["content"]
    # The engine, and every other library of the zip, is the one in it.
    assert {path for path in found["mapped"] if "ggml" in path or "llama" in path} <= set(
        map(str, (task_root / "llama_cpp" / "lib").glob("*.so"))
    )


@pytest.mark.skipif(sys.platform != "linux" or this_architecture() != "x86_64", reason="names x86_64's variants")
@pytest.mark.parametrize("variant", ARCHITECTURES["x86_64"].variants)
def test_every_variant_that_this_cpu_has_answers(
    assembled: Path, tmp_path: Path, model_path: str, variant: str
) -> None:
    features = {"x64": set(), "sse42": {"sse4_2"}, "haswell": {"avx2", "fma", "f16c", "bmi2"}}
    features["skylakex"] = features["haswell"] | {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
    features["cascadelake"] = features["skylakex"] | {"avx512_vnni"}
    if missing := features[variant] - set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()):
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    alone = tmp_path / "alone"
    others = [f"libggml-cpu-{other}.so" for other in ARCHITECTURES["x86_64"].variants if other not in ("x64", variant)]
    shutil.copytree(assembled, alone, ignore=shutil.ignore_patterns(*others))

    found = invoke(alone, tmp_path, chat("Hello"), MODEL=model_path)

    assert json.loads(found["answer"]["body"])["content"]
    # The better one of the two that are there.
    (mapped,) = [Path(path).name for path in found["mapped"] if "ggml-cpu" in path]
    assert mapped == f"libggml-cpu-{variant}.so"


def test_a_snapshot_is_taken_along_and_used(tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = "Eres un agrónomo y respondes en una frase. " * 6
    (tmp_path / "system.txt").write_text(system, encoding="utf-8")
    monkeypatch.setenv("MODEL", model_path)
    made = [sys.executable, str(ROOT / "build"), "snapshot", "--system", "system.txt", "--output", "snapshots"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(assembly, "SNAPSHOTS", tmp_path / "snapshots")
    assemble(Plan("lambda", this_architecture(), PYTHON), tmp_path / "task", os.environ)
    _make_writable(tmp_path / "task", False)
    event = chat("Hola")
    event["body"] = json.dumps({"system": system, "context": "Hola", "max_tokens": 1})

    found = invoke(tmp_path / "task", tmp_path, event, MODEL=model_path, SNAPSHOT_DIR=str(tmp_path / "others"))

    usage = json.loads(found["answer"]["body"])["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2
    assert not (tmp_path / "others").exists()
    _make_writable(tmp_path / "task", True)


def test_the_arm64_zip_answers_under_emulation(tmp_path: Path, model_path: str) -> None:
    python = arm64_python().name.removeprefix("python")
    assemble(Plan("lambda", "arm64", python), tmp_path / "task", os.environ)
    output = tmp_path / "found.json"

    run_emulated(
        "neoverse-n1",
        ["-c", INVOKE, output],
        tmp_path / "task",
        {"MODEL": model_path, "N_THREADS": "1", "REQUEST_TIMEOUT_SECONDS": "600"},
        json.dumps(chat("Hello")),
    )

    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["answer"]["statusCode"] == 200, found
    assert json.loads(found["answer"]["body"])["usage"]["completion_tokens"] == 4
    (mapped,) = [Path(path) for path in found["mapped"] if "ggml-cpu" in path]
    assert mapped == tmp_path / "task" / "llama_cpp" / "lib" / "libggml-cpu-armv8.2_2.so"


def test_the_same_files_give_the_same_bytes(assembled: Path, archive: Path, tmp_path: Path) -> None:
    # Anew, elsewhere, at another time, and by another order of the directory's entries.
    again = tmp_path / "elsewhere" / "package"
    assemble(Plan("lambda", this_architecture(), PYTHON), again, os.environ)
    for path in again.rglob("*.py"):
        os.utime(path, (0, 0))
    write_zip(again, tmp_path / "again.zip")

    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_it_holds_what_is_allowed_and_no_more(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()

    assert {name.partition("/")[0] for name in names if ".dist-info" not in name and "__pycache__" not in name} == {
        *("handler.py", "model_loader.py", "llamafn", "llama_cpp", "jinja2", "markupsafe")
    }
    assert {name.rpartition(".")[2] for name in names if "/lib/" in name} == {"so"}
    # For each source its bytecode, and no other.
    sources = {name for name in names if name.endswith(".py")}
    tag = f"cpython-{PYTHON.replace('.', '')}"
    compiled = {name.replace("__pycache__/", "").replace(f".{tag}.pyc", ".py") for name in names if ".pyc" in name}
    assert compiled == sources


def test_every_package_that_our_code_imports_is_in_it() -> None:
    imported: dict[str, Path] = {}
    for path in (ROOT / "handler.py", ROOT / "model_loader.py", *(ROOT / "llamafn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            imported |= {name.partition(".")[0]: path for name in names}
    ours = {"llamafn", "model_loader", "llama_cpp", *ALWAYS}
    # For type checkers; what Lambda's Python brings; what its system makes unnecessary; what is used if it is there.
    elsewhere = {"flask", "snapshot_restore_py", "botocore", "certifi", "prometheus_client"}

    assert set(imported) - set(sys.stdlib_module_names) - ours - elsewhere == set(), imported


def test_its_size_stays_within_the_goal(archive: Path) -> None:
    _, unpacked, zipped = sizes_in(archive)[-1]

    assert zipped < 8_000_000
    assert unpacked < 25_000_000


def test_permissions_are_those_that_lambda_needs(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        modes = {info.filename: info.external_attr >> 16 for info in opened.infolist()}

    assert modes["handler.py"] == 0o100644
    assert all(mode in (0o100644, 0o100755) for mode in modes.values())


def test_bytecode_is_not_checked_against_its_source(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    compile_bytecode(tmp_path, PYTHON, os.environ)

    (compiled,) = (tmp_path / "__pycache__").iterdir()
    # PEP 552: bit 0 says that a hash stands for the time, bit 1 that it is checked.
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1


def test_without_that_python_the_sources_go_alone_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")

    compile_bytecode(tmp_path, "3.99", {"PATH": "/nonexistent"})

    assert [path.name for path in tmp_path.iterdir()] == ["module.py"]
    assert "no working python3.99" in capsys.readouterr().err


def test_a_python_that_does_not_run_is_not_taken(tmp_path: Path) -> None:
    # pyenv's shims are such.
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.99: command not found' >&2; exit 127\n")
    shim.chmod(0o755)

    assert find_python("3.99", {"PATH": str(tmp_path), "HOME": str(tmp_path)}) is None
    assert find_python(PYTHON, {"PATH": str(tmp_path)}) == sys.executable


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")

    with pytest.raises(CommandFailed, match="is not empty"):
        assemble(Plan("lambda", this_architecture(), PYTHON), tmp_path, os.environ)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_every_package_is_pinned() -> None:
    pinned = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))

    for purpose in PURPOSES.values():
        assert set(purpose.packages) <= set(pinned)
