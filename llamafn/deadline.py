"""One moment by which a request's answer must leave; fetch, load, prefill and decode all keep to it."""

from __future__ import annotations

import time
from collections.abc import Callable

from llamafn.errors import DeadlinePassed


class Deadline:
    """A moment on the monotonic clock, in seconds. Immutable.

    `clock` can be replaced in tests.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at = at
        self._clock = clock

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    @classmethod
    def never(cls) -> Deadline:
        return cls(float("inf"))

    def remaining(self) -> float:
        """Seconds left; negative once it has passed, infinite if there is none."""
        return self._at - self._clock()

    def has_passed(self) -> bool:
        return self.remaining() <= 0

    def at_most(self, seconds: float) -> Deadline:
        """The earlier of this and `seconds` from now."""
        return Deadline(min(self._at, self._clock() + seconds), self._clock)

    def check(self, doing: str) -> None:
        """Raise `DeadlinePassed`, naming what was under way, if there is no time left."""
        if self.has_passed():
            raise DeadlinePassed(
                f"The request's time ran out while {doing}.",
                hint="Try again: what has been fetched and loaded by then is kept.",
                retry_after=1,
            )
