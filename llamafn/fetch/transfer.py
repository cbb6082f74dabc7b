"""The bytes of one version of an object, on their way into a part; and what follows close behind them."""

from __future__ import annotations

import hashlib
import os
import threading

from llamafn.fetch.gguf import read_layout
from llamafn.fetch.part import Part, write_at
from llamafn.fetch.ranges import MIB, Ranges, Span
from llamafn.fetch.run import Run

# Bytes between two lines of the journal: what a kill can cost, for each connection.
JOURNAL_BYTES = MIB


class Transfer:
    """Outlives a run: the next one goes on with it. `changed` guards it."""

    def __init__(self, part: Part, expected_digest: str | None, changed: threading.Condition, connections: int) -> None:
        self.part = part
        self.version = part.version
        self.expected_digest = expected_digest
        self._changed = changed
        self._connections = connections
        self._ranges = Ranges(part.version.size, part.good)
        self._sha256 = hashlib.sha256()
        self._hashed = 0  # bytes
        self._data_start: int | None = None
        self.ranged = False  # the server has answered a range with that range
        self.single = False  # it does not: one stream brings all

    @property
    def done(self) -> int:
        """Bytes that are here."""
        with self._changed:
            return self._ranges.done

    @property
    def is_loadable(self) -> bool:
        with self._changed:
            return self._data_start is not None and self._ranges.prefix >= self._data_start

    def take(self) -> Span | None:
        with self._changed:
            return self._ranges.take_rest() if self.single else self._ranges.take(self._connections)

    def next_span(self, run: Run) -> Span | None:
        """Wait for something to fetch; None if nothing is left."""
        with self._changed:
            while True:
                run.check()
                span = self.take()
                if span is not None or self._ranges.is_complete:
                    return span
                run.wait()

    def put_back(self, span: Span) -> None:
        with self._changed:
            self._ranges.put_back(span)
            self._changed.notify_all()

    def swap_for_rest(self, span: Span) -> Span:
        """From now on one stream brings all. For the only span in flight."""
        with self._changed:
            self.single = True
            self._ranges.put_back(span)
            rest = self._ranges.take_rest()
            assert rest is not None
            return rest

    def write(self, span: Span, data: memoryview) -> None:
        """Put bytes in their place. Raises NoRoom."""
        write_at(self.part.fd, data, span.position)
        with self._changed:
            prefix = self._ranges.prefix
            self._ranges.arrived(span, len(data))
            if self._ranges.prefix > prefix:
                self._changed.notify_all()

    # Close behind.

    def _wait_prefix(self, run: Run, count: int) -> int:
        """Bytes that are here without a gap from the start, once they are `count` or all."""
        with self._changed:
            while (prefix := self._ranges.prefix) < min(count, self.version.size):
                run.wait()
            return prefix

    def hash_behind(self, run: Run) -> None:
        """SHA-256 in file order of what has just been written, which the page cache still has."""
        buffer = memoryview(bytearray(MIB))
        while self._hashed < self.version.size:
            prefix = self._wait_prefix(run, self._hashed + MIB)
            while self._hashed < prefix:
                run.check()
                count = os.preadv(self.part.fd, [buffer[: min(MIB, prefix - self._hashed)]], self._hashed)
                self._sha256.update(buffer[:count])
                self._hashed += count

    def read_metadata(self, run: Run, shown: str) -> None:
        """Find where the engine's first reading ends: it may begin once the bytes before that are here.

        Raises NotGGUF.
        """
        if self._data_start is not None:
            return

        def read(position: int, least: int, most: int) -> bytes:
            prefix = self._wait_prefix(run, position + least)
            return os.pread(self.part.fd, min(most, prefix - position), position)

        layout = read_layout(read, self.version.size, shown)
        with self._changed:
            self._data_start = layout.data_start
            self._changed.notify_all()

    def digest(self) -> str:
        """SHA-256 of all bytes, once `hash_behind` has returned."""
        assert self._hashed == self.version.size
        return self._sha256.hexdigest()
