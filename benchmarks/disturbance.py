"""How much of the machine others took while something was measured.

llama.cpp's threads spin while they wait for each other, so a neighbour that takes one of two CPUs does not halve its
speed but ruins it. A figure taken then says nothing, and is better taken again.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """CPU time that neither this process nor the children it has waited for took, from the object's making on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._busy = _machine_seconds()
        self._ours = _our_seconds()

    def share(self) -> float:
        """Of one CPU, 0 and up: 1.0 is as much as one busy neighbour. A child that still runs counts as another."""
        elapsed = max(time.monotonic() - self._started, 1 / _TICKS)
        others = (_machine_seconds() - self._busy) - (_our_seconds() - self._ours)
        return max(0.0, others / elapsed)


def wait_for_quiet(patience: float, share: float = 0.1) -> None:
    """Return when others took less than `share` of a CPU for half a second, or after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        load = OtherLoad()
        time.sleep(0.5)
        if load.share() < share:
            return


def _machine_seconds() -> float:
    """CPU seconds of everybody since the machine's start, what its host took away (steal) included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _our_seconds() -> float:
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
