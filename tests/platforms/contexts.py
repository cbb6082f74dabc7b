"""Lambda's context object."""

from __future__ import annotations


class Context:
    """The part of it that is read."""

    aws_request_id = "8f5a8b2e-0000-4000-8000-000000000000"

    def __init__(self, milliseconds: int = 30_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds
