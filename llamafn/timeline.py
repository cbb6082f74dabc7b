"""Where the time of a cold start goes: phases on the monotonic clock, counted from the process's start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager


def process_start() -> float:
    """When this process was executed, in seconds on the monotonic clock, to 10 ms.

    Field 22 of /proc/self/stat counts clock ticks since boot; see proc_pid_stat(5).
    """
    with open("/proc/self/stat", "rb") as file:
        # The second field, the command's name in parentheses, may hold anything.
        after_name = file.read().rpartition(b")")[2].split()
    ticks = int(after_name[22 - 3])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


class Timeline:
    """The phases of one process's cold start, in the order in which they began. Any thread may add to it."""

    def __init__(self, origin: float) -> None:
        self._lock = threading.Lock()
        self._origin = origin
        self._phases: dict[str, tuple[float, float | None]] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Time a phase. A phase that was timed before counts from now on."""
        began = time.monotonic() - self._origin
        with self._lock:
            self._phases[name] = (began, None)
        try:
            yield
        finally:
            with self._lock:
                self._phases[name] = (began, time.monotonic() - self._origin)

    def mark(self, name: str) -> None:
        """Note a phase that lasted from the process's start until now."""
        with self._lock:
            self._phases.setdefault(name, (0.0, time.monotonic() - self._origin))

    def restart(self) -> None:
        """Count from now on: this process was forked from one that had been running for a while."""
        with self._lock:
            self._origin = time.monotonic()
            self._phases.clear()

    def to_json(self) -> list[dict[str, float | str | None]]:
        """`{"phase", "start_ms", "ms"}` of each; `ms` is null while it lasts."""
        with self._lock:
            return [
                {
                    "phase": name,
                    "start_ms": round(began * 1000, 1),
                    "ms": None if ended is None else round((ended - began) * 1000, 1),
                }
                for name, (began, ended) in self._phases.items()
            ]


COLD_START = Timeline(process_start())
