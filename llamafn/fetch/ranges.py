"""Which bytes of an object are here, which are on their way, and who fetches what next. No I/O, no locks."""

from __future__ import annotations

from collections.abc import Iterable

KIB, MIB = 1 << 10, 1 << 20

# The start of a GGUF, header and vocabulary, is asked for in small spans, so that all connections bring it together
# and the engine can begin to load.
HEAD_BYTES = 8 * MIB
HEAD_SPAN = MIB
# Long spans cost few round trips; short ones end together and keep the bytes nearly in file order for the digest.
LONGEST_SPAN = 32 * MIB
SHORTEST_SPAN = 2 * MIB


class Span:
    """Bytes `position` to `end` (exclusive) that one connection is fetching."""

    __slots__ = ("end", "position")

    def __init__(self, position: int, end: int) -> None:
        self.position = position
        self.end = end

    def __repr__(self) -> str:
        return f"Span({self.position}, {self.end})"

    @property
    def remaining(self) -> int:
        return self.end - self.position


class Ranges:
    """Every byte is in one of three states: wanted, in flight, here."""

    def __init__(self, size: int, here: Iterable[tuple[int, int]] = ()) -> None:
        self.size = size
        self._wanted: list[tuple[int, int]] = []  # sorted, apart from each other
        self._in_flight: list[Span] = []
        reached = 0
        for start, end in sorted(here):
            if start > reached:
                self._wanted.append((reached, start))
            reached = max(reached, end)
        if reached < size:
            self._wanted.append((reached, size))

    @property
    def done(self) -> int:
        """Bytes that are here."""
        wanted = sum(end - start for start, end in self._wanted)
        return self.size - wanted - sum(span.remaining for span in self._in_flight)

    @property
    def prefix(self) -> int:
        """Bytes that are here without a gap from the start."""
        gaps = [span.position for span in self._in_flight if span.remaining]
        if self._wanted:
            gaps.append(self._wanted[0][0])
        return min(gaps, default=self.size)

    def here(self) -> list[tuple[int, int]]:
        gaps = sorted([*self._wanted, *((span.position, span.end) for span in self._in_flight if span.remaining)])
        intervals, reached = [], 0
        for start, end in gaps:
            if start > reached:
                intervals.append((reached, start))
            reached = end
        if reached < self.size:
            intervals.append((reached, self.size))
        return intervals

    def take(self, connections: int) -> Span | None:
        """The next span to fetch: the lowest bytes that are wanted, or half of what another connection still has to do.

        None if nothing is worth taking now; a span in flight may yet come back.
        """
        if self._wanted:
            start, end = self._wanted[0]
            if start < HEAD_BYTES:
                longest = HEAD_SPAN
            else:
                wanted = sum(stop - begin for begin, stop in self._wanted)
                longest = min(LONGEST_SPAN, max(SHORTEST_SPAN, wanted // (2 * connections)))
            stop = min(end, start + longest)
            if stop == end:
                del self._wanted[0]
            else:
                self._wanted[0] = (stop, end)
            span = Span(start, stop)
        else:
            slowest = max(self._in_flight, key=lambda span: span.remaining, default=None)
            if slowest is None or slowest.remaining < 2 * SHORTEST_SPAN:
                return None
            # Its connection may be one buffer ahead of `position`; half of the rest is far more than that.
            middle = slowest.position + slowest.remaining // 2
            span = Span(middle, slowest.end)
            slowest.end = middle
        self._in_flight.append(span)
        return span

    def take_rest(self) -> Span | None:
        """All from the first byte that is wanted to the end of the object, for a stream that cannot leave out any."""
        if not self._wanted:
            return None
        span = Span(self._wanted[0][0], self.size)
        self._wanted = []
        self._in_flight.append(span)
        return span

    @property
    def is_complete(self) -> bool:
        return not self._wanted and not self._in_flight

    def arrived(self, span: Span, count: int) -> None:
        span.position += count
        assert span.position <= span.end, f"{span} was overrun"

    def put_back(self, span: Span) -> None:
        """End a span; what it still lacks is wanted again."""
        self._in_flight.remove(span)
        if not span.remaining:
            return
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._wanted, (span.position, span.end)]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._wanted = merged
