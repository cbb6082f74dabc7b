from pathlib import Path

import pytest

from benchmarks import page_cache
from benchmarks.process_memory import memory_of
from benchmarks.servers import pieces


def test_text_is_found_in_openais_stream_and_in_ours() -> None:
    stream = [
        b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}\n',
        b"\n",
        b'data: {"choices": [{"delta": {"content": "Riega"}}]}\n',
        b'data: {"choices": [], "usage": {}}\n',
        b": a comment\n",
        b'data: {"content": " al amanecer"}\n',
        b"data: [DONE]\n",
    ]
    assert list(pieces(iter(stream))) == ["Riega", " al amanecer"]


def test_a_file_can_be_dropped_from_the_page_cache_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    try:
        page_cache.drop(path)
    except AssertionError:
        pytest.skip("this file system keeps its pages in memory")
    assert page_cache.resident_fraction(path) < 0.01
    page_cache.warm(path)
    assert page_cache.resident_fraction(path) == 1.0


def test_memory_leaves_the_models_pages_out(tmp_path: Path) -> None:
    import mmap
    import os

    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(32 << 20))
    before = memory_of(os.getpid(), path)
    assert before.model_pages == 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as model:
        assert sum(model[:: mmap.PAGESIZE]) > 0  # every page is read
        while_mapped = memory_of(os.getpid(), path)
    assert while_mapped.model_pages == pytest.approx((32 << 20) / 1e6, rel=0.05)
    assert while_mapped.beyond_model - before.beyond_model < 5
