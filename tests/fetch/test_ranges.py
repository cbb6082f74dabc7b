from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from llamafn.fetch.ranges import HEAD_BYTES, HEAD_SPAN, LONGEST_SPAN, MIB, SHORTEST_SPAN, Ranges, Span


def test_the_head_comes_first_in_small_spans() -> None:
    ranges = Ranges(100 * MIB)

    taken = [ranges.take(8) for _ in range(9)]

    assert [(span.position, span.end) for span in taken if span] == [
        *((start, start + HEAD_SPAN) for start in range(0, HEAD_BYTES, HEAD_SPAN)),
        (8 * MIB, 8 * MIB + 92 * MIB // 16),
    ]


def test_spans_are_bounded() -> None:
    ranges = Ranges(10_000 * MIB, [(0, HEAD_BYTES)])
    span = ranges.take(1)
    assert span is not None
    assert span.remaining == LONGEST_SPAN


def test_the_idle_take_over_half_of_what_the_slowest_has_left() -> None:
    ranges = Ranges(8 * MIB + SHORTEST_SPAN * 4, [(0, HEAD_BYTES)])
    slow = ranges.take_rest()
    assert slow is not None

    stolen = ranges.take(2)

    assert stolen is not None
    assert (slow.end, stolen.position, stolen.end) == (stolen.position, 8 * MIB + 2 * SHORTEST_SPAN, ranges.size)
    ranges.arrived(slow, slow.remaining)
    ranges.put_back(slow)
    assert ranges.prefix == stolen.position


def test_little_is_not_worth_taking_over() -> None:
    ranges = Ranges(HEAD_SPAN)
    assert ranges.take(8) is not None
    assert ranges.take(8) is None
    assert not ranges.is_complete


@given(
    size=st.integers(1, 60 * MIB),
    here=st.lists(st.tuples(st.integers(0, 60 * MIB), st.integers(1, 10 * MIB))),
    connections=st.integers(1, 8),
    seed=st.integers(),
)
def test_whatever_happens_every_byte_arrives_once(
    size: int, here: list[tuple[int, int]], connections: int, seed: int
) -> None:
    """Fetchers take, bring some, fail, and take again, in any order."""
    luck = random.Random(seed)
    known = [(start, min(start + length, size)) for start, length in here if start < size]
    ranges = Ranges(size, known)
    brought = 0
    had = ranges.done
    spans: list[Span] = []
    for _ in range(10_000):
        if ranges.is_complete:
            break
        span = ranges.take(connections) if len(spans) < connections else None
        if span is not None:
            spans.append(span)
        elif spans:
            span = luck.choice(spans)
            count = luck.choice([0, span.remaining, luck.randint(0, span.remaining)])
            ranges.arrived(span, count)
            brought += count
            if luck.random() < 0.7:
                ranges.put_back(span)
                spans.remove(span)
        assert ranges.done == had + brought
        assert 0 <= ranges.prefix <= ranges.done
    assert ranges.is_complete
    assert had + brought == size
    assert ranges.prefix == size
