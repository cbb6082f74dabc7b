"""When to ask again."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

from llamafn.deadline import Deadline
from llamafn.errors import FetchFailed


class Policy(NamedTuple):
    """How a download behaves, the same for every source. Times in seconds."""

    connections: int
    stall: float  # without a byte on one connection
    deadline: float  # since somebody last waited for it
    allow_http: bool
    attempts: int = 6  # in a row that brought no byte, on one connection
    first_delay: float = 0.25
    longest_delay: float = 8.0

    def delay(self, failures: int) -> float:
        """Exponential, with jitter: connections that failed together must not come back together."""
        longest = min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)


class AskedToWait(FetchFailed):
    """A server wants no request for longer than we have; nobody asks it again before that."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message, hint="Try again then. What has arrived is kept.", retry_after=seconds)
        self.until = Deadline.after(seconds)


class Again(Exception):
    """An attempt failed in a way that the next one may not. `delay` in seconds; None: exponential."""

    def __init__(self, reason: str, *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None if it says nothing of use."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
