"""Strings that match a regular expression.

The expression becomes an automaton: nodes that take one character, joined by ways that take none. A place in the
string is the set of nodes that may take its next character. Every node knows the fewest bytes to the end, and those
that lead nowhere are left out: what has begun can always be finished.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llamafn.engine.constraint.expression import Anchor, Choice, Class, Ranges, Refused, Repeat, Series, Tree, parse
from llamafn.engine.constraint.string import BACKSLASH, END, QUOTE, is_utf8, utf8_length
from llamafn.engine.constraint.symbol import Position, Symbol

MAX_NODES = 2_000
MAX_COUNTED_NODES = 8_000  # most of which are far apart
_MOST_PLACES = 10_000  # remembered; an expression may have any number of them
_ANYTHING = Repeat(Class(((0, 0xD7FF), (0xE000, 0xFFFF))), 0, math.inf)

# Each character is written in one way: these after a backslash, and other control characters never.
_ESCAPES = {0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0C: b"f", 0x0D: b"r", QUOTE: b'"', BACKSLASH: b"\\"}
_ESCAPED = {letter[0]: code for code, letter in _ESCAPES.items()}
_PLAIN = tuple(code for code in range(0x20, 0x80) if code not in _ESCAPES)
# What to fill up with, if it matches: the first of these.
_FILLERS = (*b".0aA-", *_PLAIN, *_ESCAPES)
_LEADS = range(0xC2, 0xF0)
_LOWEST = {2: 0x80, 3: 0x800, 4: 0x10000}  # of the characters of so many bytes


class _Node(NamedTuple):
    """Takes a character of `bounds`, if it has some; then, or else at once, those that are `following` may be next."""

    bounds: tuple[int, ...]  # where ranges begin, and where they have ended, in turns
    following: list[int]
    anchor: Anchor | None = None  # to be passed there alone

    def takes(self, code: int) -> bool:
        return bisect_right(self.bounds, code) % 2 == 1

    def first_of(self, first: int, last: int) -> int | None:
        """The first character from `first` to `last` that it takes."""
        index = bisect_right(self.bounds, first)
        if index % 2 == 1:
            return first
        return self.bounds[index] if index < len(self.bounds) and self.bounds[index] <= last else None


class Pattern:
    """The inside of a string of `least` to `most` characters that matches, and the quote that ends it.

    `cost` is infinite if there is none.

    Raises:
        Refused: the expression is none, or is not enforced, or its automaton is too large.
    """

    __slots__ = ("_costs", "_first", "_nodes", "_places", "cost")

    def __init__(self, expression: str, least: int = 0, most: float = math.inf) -> None:
        self._nodes: list[_Node] = [_Node((), [])]  # the first one is the end
        self._places: dict[frozenset[int], Place] = {}
        first = self._build(_anywhere(parse(expression)), 0)
        if least > 0 or most < math.inf:
            self._count_characters(least, most)
            first += 1
        self._costs = self._fewest_bytes()
        self._first = self.place([first], at_begin=True)
        self.cost: float = self._first.cost

    @property
    def size(self) -> int:
        """Nodes of the automaton."""
        return len(self._nodes)

    def start(self, *, shortest: bool) -> Position:
        return InPattern(self._first)

    def place(self, nodes: Iterable[int], *, at_begin: bool = False) -> Place:
        """Where any of these nodes is next."""
        taking: set[int] = set()
        waiting = [(node, False) for node in nodes]
        seen = set(waiting)
        while waiting:
            number, is_ended = waiting.pop()
            bounds, following, anchor = self._nodes[number]
            if number == 0 or bounds:
                if number == 0 or not (is_ended or self._costs[number] == math.inf):
                    taking.add(number)
            elif anchor is None or at_begin or not anchor.is_begin:
                ended = is_ended or (anchor is not None and not anchor.is_begin)
                further = {(node, ended) for node in following} - seen
                seen |= further
                waiting += further
        key = frozenset(taking)
        known = self._places.get(key)
        if known is None:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            nearest_first = sorted(key - {0}, key=self._costs.__getitem__)
            cost = 1.0 if 0 in key else self._costs[nearest_first[0]] if nearest_first else math.inf
            known = Place(self, tuple(self._nodes[node] for node in nearest_first), is_end=0 in key, cost=cost)
            self._places[key] = known
        return known

    def _new(self, ranges: Ranges, following: list[int], anchor: Anchor | None = None) -> int:
        if len(self._nodes) >= MAX_NODES:
            raise Refused(f"with its repetitions written out it has more than {MAX_NODES:,} parts")
        bounds = tuple(bound for first, last in ranges for bound in (first, last + 1))
        self._nodes.append(_Node(bounds, following, anchor))
        return len(self._nodes) - 1

    def _build(self, tree: Tree, then: int) -> int:
        """The node where `tree` begins, if `then` comes after it."""
        if isinstance(tree, Class):
            return self._new(tree.ranges, [then])
        if isinstance(tree, Anchor):
            return self._new((), [then], tree)
        if isinstance(tree, Series):
            for part in reversed(tree.parts):
                then = self._build(part, then)
            return then
        if isinstance(tree, Choice):
            return self._new((), [self._build(way, then) for way in tree.ways])
        if tree.most == math.inf:
            loop = self._new((), [then])
            self._nodes[loop].following.append(self._build(tree.part, loop))
            then = loop
        else:
            end = then
            for _ in range(int(tree.most) - tree.least):
                then = self._new((), [end, self._build(tree.part, then)])
        for _ in range(tree.least):
            then = self._build(tree.part, then)
        return then

    def _count_characters(self, least: int, most: float) -> None:
        """Repeat the automaton for each number of characters; those after `least` are alike if there is no `most`."""
        once, layers = self._nodes, (least if most == math.inf else int(most)) + 1
        if len(once) * layers > MAX_COUNTED_NODES:
            raise Refused(f"with `minLength` and `maxLength` it has more than {MAX_COUNTED_NODES:,} parts")
        self._nodes = [_Node((), [])]
        for layer in range(layers):
            taken = layer + 1 if layer + 1 < layers else None if most < math.inf else layer
            for number, (bounds, following, anchor) in enumerate(once):
                into = taken if bounds else layer
                nodes = [] if into is None else [1 + into * len(once) + node for node in following]
                if number == 0 and layer >= least:
                    nodes = [0]
                self._nodes.append(_Node(bounds, nodes, anchor))

    def _fewest_bytes(self) -> list[float]:
        """From each node to the end and the quote; infinite if it is not to be reached."""
        before: list[list[int]] = [[] for _ in self._nodes]
        for number, node in enumerate(self._nodes):
            for following in node.following:
                before[following].append(number)
        costs = [math.inf] * len(self._nodes)
        costs[0] = 1
        ends = [0]  # from here, nothing more needs to be taken
        for end in ends:
            for number in before[end]:
                bounds, _, anchor = self._nodes[number]
                if not bounds and not (anchor and anchor.is_begin) and costs[number] == math.inf:
                    costs[number] = 1
                    ends.append(number)
        lengths: dict[tuple[int, ...], float] = {(): 0}
        waiting = [(1.0, number) for number in ends]
        while waiting:
            cost, number = heapq.heappop(waiting)
            if cost > costs[number]:
                continue
            for earlier in before[number]:
                bounds, _, anchor = self._nodes[earlier]
                if bounds not in lengths:
                    filler = _filler(self._nodes[earlier])
                    lengths[bounds] = math.inf if filler is None else len(_written(filler))
                through = cost + lengths[bounds]
                if anchor is None and through < costs[earlier]:
                    costs[earlier] = through
                    heapq.heappush(waiting, (through, earlier))
        return costs


class Place:
    """A set of nodes, the one nearest to the end first."""

    __slots__ = ("_after", "_bytes", "_nodes", "_pattern", "cost", "is_end")

    def __init__(self, pattern: Pattern, nodes: tuple[_Node, ...], *, is_end: bool, cost: float) -> None:
        self._pattern = pattern
        self._nodes = nodes
        self._after: dict[tuple[int, ...], Place] = {}
        self._bytes: tuple[int, ...] | None = None
        self.is_end = is_end
        self.cost = cost

    def takes(self, code: int) -> bool:
        return any(node.takes(code) for node in self._nodes)

    def first_of(self, first: int, last: int) -> int | None:
        """A character from `first` to `last` that may come next, on the shortest way from there."""
        return next((code for node in self._nodes if (code := node.first_of(first, last)) is not None), None)

    def after(self, code: int) -> Place | None:
        taking = tuple(index for index, node in enumerate(self._nodes) if node.takes(code))
        if taking and taking not in self._after:
            following = (node for index in taking for node in self._nodes[index].following)
            self._after[taking] = self._pattern.place(following)
        return self._after.get(taking)

    def nearest(self) -> int:
        """The next character on the shortest way to the end."""
        filler = _filler(self._nodes[0])
        assert filler is not None  # its cost is finite
        return filler

    def first_bytes(self) -> tuple[int, ...]:
        """The bytes that begin what may come next."""
        if self._bytes is None:
            self._bytes = (
                *((QUOTE,) if self.is_end else ()),
                *((BACKSLASH,) if any(map(self.takes, _ESCAPES)) else ()),
                *filter(self.takes, _PLAIN),
                *(lead for lead in _LEADS if self.first_of(*_bounds(bytes((lead,)))) is not None),
            )
        return self._bytes


class InPattern(NamedTuple):
    """A place in the string. `pending` are the bytes so far of an escape, or of a character in UTF-8."""

    place: Place
    pending: bytes = b""

    @property
    def ends(self) -> Sequence[tuple[Symbol, ...]]:
        return ()

    @property
    def cost(self) -> float:
        return len(self.shortest()[0]) if self.pending else self.place.cost

    def step(self, byte: int) -> Position | None:
        if self.pending:
            return self._continue(byte)
        if byte == QUOTE:
            return END if self.place.is_end else None
        if byte == BACKSLASH:
            return InPattern(self.place, b"\\") if any(map(self.place.takes, _ESCAPES)) else None
        if byte < 0x80:
            return self._taken(byte) if byte >= 0x20 else None
        if byte not in _LEADS or self.place.first_of(*_bounds(bytes((byte,)))) is None:
            return None
        return InPattern(self.place, bytes((byte,)))

    def next_bytes(self) -> Iterable[int]:
        if not self.pending:
            return self.place.first_bytes()
        may_follow = _ESCAPED if self.pending == b"\\" else range(0x80, 0xC0)
        return (byte for byte in may_follow if self._continue(byte) is not None)

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        place, text = self.place, b""
        if self.pending:
            code = self._likeliest()
            text = _written(code)[len(self.pending) :]
            place = place.after(code) or place
        while not place.is_end:
            code = place.nearest()
            text += _written(code)
            place = place.after(code) or place
        return text + b'"', ()

    def _continue(self, byte: int) -> Position | None:
        if self.pending == b"\\":
            code = _ESCAPED.get(byte)
            return None if code is None else self._taken(code)
        pending = self.pending + bytes((byte,))
        if not is_utf8(pending) or self.place.first_of(*_bounds(pending)) is None:
            return None
        if len(pending) < utf8_length(pending[0]):
            return InPattern(self.place, pending)
        return self._taken(ord(pending.decode()))

    def _taken(self, code: int) -> Position | None:
        after = self.place.after(code)
        return None if after is None else InPattern(after)

    def _likeliest(self) -> int:
        """A character that begins with what is pending."""
        if self.pending == b"\\":
            return next(code for code in _ESCAPES if self.place.takes(code))
        code = self.place.first_of(*_bounds(self.pending))
        assert code is not None  # else it would not be pending
        return code


def _anywhere(tree: Tree) -> Tree:
    """A string with the expression somewhere in it, where that does not say where."""
    parts = tree.parts if isinstance(tree, Series) else (tree,)
    before = () if parts and parts[0] == Anchor(is_begin=True) else (_ANYTHING,)
    after = () if parts and parts[-1] == Anchor(is_begin=False) else (_ANYTHING,)
    return Series((*before, *parts, *after))


def _bounds(partial: bytes) -> tuple[int, int]:
    """The first and the last character whose UTF-8 begins so."""
    length = utf8_length(partial[0])
    rest = 6 * (length - len(partial))
    code = partial[0] & (0x7F >> length)
    for byte in partial[1:]:
        code = code << 6 | byte & 0x3F
    return max(code << rest, _LOWEST[length]), (code + 1 << rest) - 1


def _filler(node: _Node) -> int | None:
    """The character that takes least room; None if none of them may be in a string."""
    return next(filter(node.takes, _FILLERS), None) or node.first_of(0x80, 0xFFFF)


def _written(code: int) -> bytes:
    return b"\\" + _ESCAPES[code] if code in _ESCAPES else chr(code).encode()
