"""Resident memory of a server and its children, the model's file apart.

Beyond the model's file = anonymous memory + shared memory + file pages of everything else (the interpreter, libraries),
summed over /proc/<pid>/smaps of the process and all its descendants. Pages that several of them share are divided among
them (Pss), so that a forked worker is not counted twice. Of the model's own mapping nothing is counted but what was
copied to anonymous memory. The kernel keeps no peak of this sum, so it is sampled: a peak shorter than the interval is
missed. Reading smaps holds up the process it reads, so a run whose memory is sampled is never timed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

INTERVAL_SECONDS = 0.02


class Memory(NamedTuple):
    """MB (10^6 bytes)."""

    beyond_model: float
    model_pages: float


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it that is alive."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for task in os.listdir(f"/proc/{parent}/task"):
                found += [int(child) for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()]
    return found


def memory_of(pid: int, model: Path) -> Memory:
    """Of the process and its descendants, now."""
    model_file = str(model.resolve())
    beyond = of_model = 0
    for process in descendants(pid):
        try:
            lines = Path(f"/proc/{process}/smaps").read_text().splitlines()
        except OSError:
            continue
        is_model, pss = False, 0
        for line in lines:
            key, _, rest = line.partition(" ")
            if "-" in key and not key.endswith(":"):
                is_model = rest.endswith(model_file)
            elif key == "Pss:":
                pss = int(rest.split()[0])
                beyond, of_model = (beyond, of_model + pss) if is_model else (beyond + pss, of_model)
            elif key == "Anonymous:" and is_model:
                copied = int(rest.split()[0])
                beyond, of_model = beyond + copied, of_model - copied
    return Memory(beyond * 1024 / 1e6, of_model * 1024 / 1e6)


class PeakMemory:
    """Samples in a thread from `with` to its end; `peak` holds the largest of each."""

    def __init__(self, pid: int, model: Path) -> None:
        self.peak = Memory(0.0, 0.0)
        self._pid, self._model = pid, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            now = memory_of(self._pid, self._model)
            self.peak = Memory(
                max(self.peak.beyond_model, now.beyond_model), max(self.peak.model_pages, now.model_pages)
            )

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
