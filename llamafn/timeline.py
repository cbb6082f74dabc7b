"""Where the time of a cold start goes: phases on the monotonic clock, counted from the process's start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

EXECUTED_AT = "LLAMAFN_EXECUTED_AT"


def process_start() -> float:
    """When this process was executed, in seconds on the monotonic clock, to 10 ms.

    Field 22 of /proc/self/stat counts clock ticks since boot; see proc_pid_stat(5). Whoever did something else in the
    same process before, and then took the server's place, says in EXECUTED_AT which process it was, and when.
    """
    process, _, executed_at = os.environ.get(EXECUTED_AT, "").partition(" ")
    if process == str(os.getpid()):
        return float(executed_at)
    try:
        with open("/proc/self/stat", "rb") as file:
            # The second field, the command's name in parentheses, may hold anything.
            after_name = file.read().rpartition(b")")[2].split()
        since_boot = int(after_name[22 - 3]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, IndexError):
        return time.monotonic()  # a sandbox without /proc: it counts from here


class Timeline:
    """The phases of one process's cold start, up to its first token. Any thread may add to it."""

    def __init__(self, origin: float) -> None:
        self._lock = threading.Lock()
        self._origin = origin
        self._phases: dict[str, tuple[float, float | None]] = {}
        self._finished = False
        self.record("interpreter", origin, time.monotonic())

    def record(self, name: str, began: float, ended: float | None) -> None:
        """Note a phase, in seconds on the monotonic clock. One that is tried again counts from its last beginning."""
        with self._lock:
            if not self._finished:
                self._phases[name] = (began - self._origin, None if ended is None else ended - self._origin)

    def end(self, name: str) -> None:
        """End a phase that lasts, now."""
        with self._lock:
            began, ended = self._phases.get(name, (0.0, 0.0))
            if ended is None and not self._finished:
                self._phases[name] = (began, time.monotonic() - self._origin)

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Time a phase."""
        began = time.monotonic()
        self.record(name, began, None)
        try:
            yield
        finally:
            self.record(name, began, time.monotonic())

    def finish(self, asked_at: float, prefill_began: float, first_token_at: float) -> bool:
        """The first token is there: the cold start is over. False if it was over already.

        A process that was ready before it was asked was idle in between.
        """
        with self._lock:
            ready = max((ended for _, ended in self._phases.values() if ended is not None), default=0.0) + self._origin
        if asked_at > ready:
            self.record("idle", ready, asked_at)
        self.record("prefill", prefill_began, first_token_at)
        self.record("first token", self._origin, first_token_at)
        with self._lock:
            was_finished, self._finished = self._finished, True
        return not was_finished

    @property
    def is_finished(self) -> bool:
        return self._finished

    def restart(self) -> None:
        """Count from now on: this process was forked from one that had been running for a while."""
        with self._lock:
            self._origin = time.monotonic()
            self._phases.clear()
            self._finished = False

    def to_json(self) -> list[dict[str, float | str | None]]:
        """`{"phase", "start_ms", "ms"}` of each, in order of their end; `ms` is null while it lasts."""
        with self._lock:
            phases = sorted(self._phases.items(), key=lambda phase: phase[1][1] or float("inf"))
        return [
            {
                "phase": name,
                "start_ms": round(began * 1000, 1),
                "ms": None if ended is None else round((ended - began) * 1000, 1),
            }
            for name, (began, ended) in phases
        ]

    def server_timing(self) -> str:
        """The phases as a `Server-Timing` header's value. https://www.w3.org/TR/server-timing/"""
        with self._lock:
            return ", ".join(
                f"{name.replace(' ', '-')};dur={(ended - began) * 1000:.1f}"
                for name, (began, ended) in self._phases.items()
                if ended is not None
            )


COLD_START = Timeline(process_start())
