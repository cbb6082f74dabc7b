"""The model's pages, fetched from the disk before they are asked for."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

# A page fault reads little ahead, and posix_fadvise(WILLNEED) is cut short by the kernel; reading the file through
# brings all of it, while llama.cpp is busy with the vocabulary. docs/cold-start.md has the figures.
_PIECE_BYTES = 1 << 20
READER_NAME = "llamafn-pages"
# mincore's lowest bit says whether a page is there; the others may hold anything.
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))


def read_ahead(path: str) -> threading.Thread:
    """Bring a file into the page cache, in a thread that ends by itself; what is there already costs nothing."""
    thread = threading.Thread(target=_read_missing, args=(path,), name=READER_NAME, daemon=True)
    thread.start()
    return thread


def _read_missing(path: str) -> None:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return  # whoever loads the file will say so
    try:
        for offset in missing_pieces(file):
            os.pread(file, _PIECE_BYTES, offset)
    except OSError:
        pass  # only a head start is lost
    finally:
        os.close(file)


def missing_pieces(file: int) -> list[int]:
    """Offsets of the pieces of 1 MiB that are not all in the page cache, as mincore(2) tells."""
    length = os.fstat(file).st_size
    if length == 0:
        return []
    with mmap.mmap(file, length, access=mmap.ACCESS_COPY) as mapped:
        first_byte = ctypes.c_char.from_buffer(mapped)
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        result = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(first_byte)), ctypes.c_size_t(length), pages
        )
        del first_byte
    if result != 0:
        return []
    step = _PIECE_BYTES // mmap.PAGESIZE
    resident = pages.raw.translate(_LOWEST_BIT)
    return [first * mmap.PAGESIZE for first in range(0, len(resident), step) if 0 in resident[first : first + step]]
