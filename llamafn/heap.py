"""How many heaps glibc keeps for the threads of a process."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h
HEAPS = 2


def share() -> None:
    """Let all threads share two heaps, instead of eight for each CPU: a server has dozens of threads.

    Each heap holds on to the most that its threads ever used at once, so that memory grows with the requests for hours.
    To be called before there are threads: a heap that is there stays. musl has no such call, and no such heaps.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)
