from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafn.errors import ModelUnavailable
from llamafn.fetch.gguf import GGUFHeader, NotGGUF, check_gguf, check_whole_gguf, read_layout
from tests.fetch.models import a_gguf


def layout_of(data: bytes, size: int | None = None, step: int = 1 << 20) -> tuple[int, int]:
    """Through a reader that gives no more than it must, or `step` bytes."""

    def read(position: int, least: int, most: int) -> bytes:
        return data[position : position + max(least, min(most, step))]

    layout = read_layout(read, len(data) if size is None else size, "model.gguf")
    return layout.data_start, layout.least_size


@pytest.mark.parametrize("version", [2, 3])
def test_a_good_file(version: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(a_gguf(10_000, version=version))

    assert check_gguf(str(path)) == GGUFHeader(version, tensors=2, metadata_entries=5)
    layout = check_whole_gguf(str(path))
    assert layout.least_size == path.stat().st_size
    assert layout.data_start == layout.least_size - 10_000


@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_the_walk_needs_no_bytes_of_the_tensors(step: int) -> None:
    data = a_gguf(1_000_000)
    start, least = layout_of(data)

    assert start < len(data) - 999_000
    assert layout_of(data[:start], len(data), step) == (start, least)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it has 0 bytes"),
        (b"GGUF\x03", "it has 5 bytes"),
        (b"version https://git-lfs.github.com/spec/v1", "begins with b'vers', not b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "GGUF version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "without metadata"),
    ],
)
def test_what_is_not_a_model(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    with pytest.raises(NotGGUF) as caught:
        check_gguf(str(path))

    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.status == 503


def test_a_missing_file_names_the_settings() -> None:
    with pytest.raises(ModelUnavailable) as caught:
        check_gguf("/nowhere/model.gguf")

    assert caught.value.message == "The model '/nowhere/model.gguf' cannot be read: No such file or directory."
    assert "LOCAL_MODEL_PATH" in str(caught.value.hint)


DATA = a_gguf(3_000, tokens=50)


@given(cut=st.integers(24, len(DATA) - 1))
def test_wherever_it_is_cut_that_is_found(cut: int) -> None:
    with pytest.raises(NotGGUF, match="cut"):
        layout_of(DATA[:cut])


@settings(max_examples=300)
@given(position=st.integers(4, 1_200), value=st.integers(0, 255))
def test_damage_is_an_error_or_unseen_but_never_anything_else(position: int, value: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] = value
    with contextlib.suppress(NotGGUF):
        layout_of(bytes(damaged))
