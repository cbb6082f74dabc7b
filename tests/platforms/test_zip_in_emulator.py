"""What ./build zip deploys, in AWS's emulator: unpacked read-only, without HOME and PYTHONPATH, under both clients."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands.assembly import Plan, assemble
from commands.portable_engine import this_architecture
from commands.zip import write_zip
from tests.platforms.functions import emulated, url_event

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def task_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("zip")
    assemble(Plan("lambda", this_architecture(), PYTHON), directory / "package", os.environ)
    write_zip(directory / "package", directory / "llamafn.zip")
    root = directory / "task"
    with zipfile.ZipFile(directory / "llamafn.zip") as archive:
        for info in archive.infolist():
            os.chmod(archive.extract(info, root), info.external_attr >> 16)
    everything = [root, *root.rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~0o222)
    yield root
    for path in everything:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.parametrize("client", ["awslambdaric", "ours"])
def test_the_zip_answers(task_root: Path, tmp_path: Path, model_path: str, client: str) -> None:
    alone = ("env", "-u", "HOME", "-u", "PYTHONPATH", f"--chdir={task_root}")
    # Ours under an interpreter that has none of this environment's packages.
    ours = (str(task_root / "llamafn/platforms/lambda-wrapper"), str(Path(sys.base_prefix) / "bin" / "python3"))
    command = (*alone, *(ours if client == "ours" else (sys.executable, "-m", "awslambdaric")))

    with emulated(tmp_path, command, LAMBDA_TASK_ROOT=str(task_root), MODEL=model_path) as emulator:
        answer = emulator.invoke(url_event("/chat", {"context": "Hello", "max_tokens": 4}))
        (pid,) = emulator.function_pids()
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")

    assert answer["statusCode"] == 200, answer
    assert json.loads(answer["body"])["content"]
    assert str(task_root / "llama_cpp" / "lib" / "libllama.so") in maps
