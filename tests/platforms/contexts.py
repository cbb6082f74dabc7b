"""Lambda's context object."""

from __future__ import annotations


class Context:
    """The part of it that is read."""

    def __init__(self, milliseconds: int = 30_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds
