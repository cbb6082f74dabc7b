"""Whether a file's pages are in memory: put them there, or drop them. Neither needs root."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


def resident_fraction(path: Path) -> float:
    """How much of the file is in the page cache, 0 to 1, as mincore(2) tells."""
    size = path.stat().st_size
    if size == 0:
        return 1.0
    pages = -(-size // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    try:
        if _libc.mincore(address, size, resident) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        _libc.munmap(address, size)
    return sum(page & 1 for page in bytes(resident)) / pages


def warm(path: Path) -> None:
    """Read the whole file, so that no run waits for the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def drop(path: Path) -> None:
    """Take the file out of the page cache; AssertionError if over 1 % stays, as it does while a process maps it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # dirty pages would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    left = resident_fraction(path)
    if left > 0.01:
        raise AssertionError(f"{left:.0%} of {path} is still in the page cache: does a process map it?")
