from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafn.engine.pages import missing_pieces, read_ahead


@pytest.fixture
def cold_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(3 << 20) + b"end")
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    missing = missing_pieces(file)
    os.close(file)
    if missing != [0, 1 << 20, 2 << 20, 3 << 20]:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_cold_file_is_brought_in(cold_file: Path) -> None:
    read_ahead(str(cold_file)).join()
    file = os.open(cold_file, os.O_RDONLY)
    assert missing_pieces(file) == []
    os.close(file)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    read_ahead(str(tmp_path / "none")).join()
    empty = tmp_path / "empty"
    empty.touch()
    read_ahead(str(empty)).join()
