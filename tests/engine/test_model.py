"""Files that are not what they should be."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from llamafn.engine.model import Model
from llamafn.engine.snapshot import fingerprint
from llamafn.errors import ModelUnavailable


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "llama.cpp cannot load"),
        (b"not a model at all, but long enough to have a magic", "invalid magic"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "llama.cpp cannot load"),
    ],
)
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable) as caught:
        Model(str(path))
    assert re.search(reason, caught.value.message)
    assert caught.value.hint


def test_a_truncated_gguf(tmp_path: Path, model_path: str) -> None:
    path = tmp_path / "model.gguf"
    with open(model_path, "rb") as whole:
        path.write_bytes(whole.read(8 << 20))
    with pytest.raises(ModelUnavailable, match="not within the file bounds"):
        Model(str(path))


def test_no_file() -> None:
    with pytest.raises(ModelUnavailable, match=r"There is no model file at '/nowhere/model\.gguf'"):
        Model("/nowhere/model.gguf")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made up."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelUnavailable) as caught:
        Model(str(path))
    assert caught.value.message == f"The model file {str(path)!r} cannot be opened: Permission denied."


def test_a_path_that_comes_to_name_another_file(tmp_path: Path, model_path: str) -> None:
    """What is read of the file later on is still the file that was mapped."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(model_path, path)
    long_word = "ñ" * 4_000  # the whole vocabulary is loaded for it
    original = Model(model_path)
    expected = original.vocabulary.tokenize(long_word, add_special=False, parse_special=False)
    model = Model(str(path))
    assert fingerprint(*model.paths) == fingerprint(model_path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF of another kind")
    (tmp_path / "other.gguf").replace(path)
    assert model.vocabulary.tokenize(long_word, add_special=False, parse_special=False) == expected
    assert fingerprint(*model.paths) == fingerprint(model_path)
    before = len(os.listdir("/proc/self/fd"))
    model.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    original.close()


def test_text_and_tokens(model_path: str) -> None:
    model = Model(model_path)
    vocabulary = model.vocabulary
    text = "¿Cuándo debo regar el maíz? 🌽 \x00 end"
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocabulary.piece(token) for token in tokens).decode() == text
    assert vocabulary.tokenize("", add_special=False, parse_special=False) == []
    assert vocabulary.ends_generation(vocabulary.tokenize(vocabulary.eos, add_special=False, parse_special=True)[0])
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.description  # noqa: B018 - reading it is the test
