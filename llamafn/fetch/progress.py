"""How far a fetch is, and how fast."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW_SECONDS = 3.0


class Progress(NamedTuple):
    """Bytes that are here, of how many, and at what pace; None where it is not known yet."""

    done: int  # bytes
    total: int | None  # bytes
    rate: float | None  # bytes per second
    seconds_left: float | None

    @property
    def is_complete(self) -> bool:
        return self.done == self.total

    def __str__(self) -> str:
        if self.total is None:
            return "asking for the model"
        text = f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB"
        if self.rate is not None and self.seconds_left is not None and not self.is_complete:
            text += f", {self.rate / 1e6:,.1f} MB/s, {self.seconds_left:,.0f} s left"
        return text


class Meter:
    """Counts what arrives, on any connection, and how fast it did over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.received = 0  # bytes
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def add(self, count: int) -> None:
        with self._lock:
            self.received += count
            now = self._clock()
            if now - self._samples[-1][0] >= WINDOW_SECONDS / 30:
                self._samples.append((now, self.received))
                while now - self._samples[0][0] > WINDOW_SECONDS and len(self._samples) > 2:
                    self._samples.popleft()

    def rate(self) -> float | None:
        """Bytes per second; None if nothing has come."""
        with self._lock:
            start, before = self._samples[0]
            elapsed = self._clock() - start
            return (self.received - before) / elapsed if elapsed > 0 and self.received > before else None
