from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from commands import snapshot
from commands.terminal import CommandFailed

pytestmark = pytest.mark.usefixtures("nothing_loaded")


def arguments(system: Path, model: str, output: Path) -> argparse.Namespace:
    return argparse.Namespace(system=system, model=model, output=output)


def test_a_snapshot_to_ship(tmp_path: Path, model_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Eres un agrónomo y respondes en una frase. " * 6, encoding="utf-8")
    assert snapshot.run(arguments(system, model_path, tmp_path / "out")) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert str(path) in capsys.readouterr().out
    assert path.suffix == ".snapshot"


def test_one_that_lies_beside_the_model_is_put_where_it_is_wanted(
    tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Eres un agrónomo y respondes en una frase. " * 6, encoding="utf-8")
    (tmp_path / "model.gguf").symlink_to(model_path)
    monkeypatch.delenv("SNAPSHOT_DIR", raising=False)
    assert snapshot.run(argparse.Namespace(system=system, model=str(tmp_path / "model.gguf"), output=None)) == 0
    (beside,) = tmp_path.glob("*.snapshot")

    assert snapshot.run(arguments(system, str(tmp_path / "model.gguf"), tmp_path / "out")) == 0

    assert [path.name for path in (tmp_path / "out").iterdir()] == [beside.name]
    assert (tmp_path / "out" / beside.name).read_bytes() == beside.read_bytes()


def test_a_prompt_too_short_to_keep(tmp_path: Path, model_path: str) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Hola", encoding="utf-8")
    with pytest.raises(CommandFailed, match="No snapshot was kept of"):
        snapshot.run(arguments(system, model_path, tmp_path / "out"))


def test_no_such_prompt(tmp_path: Path, model_path: str) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        snapshot.run(arguments(tmp_path / "none", model_path, tmp_path))
