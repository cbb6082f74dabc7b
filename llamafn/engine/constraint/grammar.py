"""A grammar of bytes, and where an answer stands in it.

A symbol is a rule, the inside of a string, or a number. A rule's alternatives are literal bytes followed by symbols. A
state is a set of threads: each a position inside of one symbol, and the stack of symbols that come after it. Every
position knows the least number of bytes to the end of the document, so an answer can be ended anywhere, legally.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llamafn.engine.constraint.string import End, InString
from llamafn.engine.constraint.symbol import Position, Symbol

# Symbols on the stack, which is one for each open array or object. Beyond, only the shortest way on is legal.
MAX_OPEN = 64
# A schema whose alternatives begin alike for long is followed in so many of them.
MAX_THREADS = 256
MAX_FORCED_BYTES = 512

_NOT_PLAIN = re.compile(rb'["\\\x00-\x1f]')


class Alternative(NamedTuple):
    literal: bytes
    symbols: tuple[Symbol, ...]

    @property
    def cost(self) -> float:
        return len(self.literal) + sum(symbol.cost for symbol in self.symbols)


class Rule:
    """A symbol with alternatives. They may be added until the grammar is `settled`; a rule may contain itself."""

    __slots__ = ("_root", "_shortest_root", "alternatives", "best", "cost")

    def __init__(self, *alternatives: Alternative) -> None:
        self.alternatives = alternatives
        self.best: Alternative | None = None
        self.cost = math.inf
        self._root: Literals | None = None
        self._shortest_root: Literals | None = None

    def start(self, *, shortest: bool) -> Position:
        if shortest and self.best is not None:
            if self._shortest_root is None:
                self._shortest_root = Literals((self.best,))
            return self._shortest_root
        if self._root is None:
            self._root = Literals(self.alternatives)
        return self._root


def settle(rules: Sequence[Rule]) -> None:
    """Work out every rule's shortest text, and drop the alternatives that never end."""
    changed = True
    while changed:
        changed = False
        for rule in reversed(rules):  # what a rule is made of was mostly made after it
            for alternative in rule.alternatives:
                cost = alternative.cost
                if cost < rule.cost:
                    rule.cost, rule.best, changed = cost, alternative, True
    for rule in rules:
        rule.alternatives = tuple(one for one in rule.alternatives if one.cost < math.inf)


class Literals:
    """A position in the literals of some alternatives: a prefix tree that grows where it is walked."""

    __slots__ = ("_alternatives", "_children", "_offset", "cost", "ends")

    def __init__(self, alternatives: tuple[Alternative, ...], offset: int = 0) -> None:
        self._alternatives = alternatives
        self._offset = offset
        self._children: dict[int, Literals] | None = None
        self.cost: float = min(one.cost for one in alternatives) - offset
        self.ends = tuple(one.symbols for one in alternatives if len(one.literal) == offset)

    def step(self, byte: int) -> Position | None:
        return self._tree().get(byte)

    def next_bytes(self) -> Iterable[int]:
        return self._tree()

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        best = min(self._alternatives, key=lambda one: one.cost)
        return best.literal[self._offset :], best.symbols

    def _tree(self) -> dict[int, Literals]:
        if self._children is None:
            groups: dict[int, list[Alternative]] = {}
            for one in self._alternatives:
                if len(one.literal) > self._offset:
                    groups.setdefault(one.literal[self._offset], []).append(one)
            self._children = {byte: Literals(tuple(group), self._offset + 1) for byte, group in groups.items()}
        return self._children


class Frame(NamedTuple):
    """A stack of symbols that are still to come: the next one, and those below it."""

    symbol: Symbol
    below: Frame | None
    depth: int
    cost: float  # of all of them


Thread = tuple[Position | None, Frame | None]  # the position is None at the document's end


class State:
    """Where an answer stands. Immutable, but for what it remembers of the bytes that were tried."""

    __slots__ = ("_next", "threads")

    def __init__(self, threads: tuple[Thread, ...]) -> None:
        self.threads = threads
        self._next: dict[int, State | None] = {}

    @classmethod
    def before(cls, symbol: Symbol) -> State:
        threads: list[Thread] = []
        _settle(symbol.start(shortest=False), None, threads)
        return cls(tuple(threads))

    @property
    def is_complete(self) -> bool:
        """Whether the document may end here."""
        return any(position is None for position, _ in self.threads)

    @property
    def is_final(self) -> bool:
        """Whether it must."""
        return all(position is None for position, _ in self.threads)

    @property
    def cost(self) -> float:
        """The least number of bytes to the end."""
        return min(_cost(thread) for thread in self.threads)

    def step(self, byte: int) -> State | None:
        """The state after one more byte; None if that is not legal."""
        if byte in self._next:
            return self._next[byte]
        threads: list[Thread] = []
        for position, stack in self.threads:
            after = position.step(byte) if position is not None else None
            if after is not None:
                _settle(after, stack, threads)
        if len(threads) > 1:
            threads = list(dict.fromkeys(threads))
        state = self._next[byte] = State(tuple(threads)) if threads else None
        return state

    def walk(self, piece: bytes) -> State | None:
        """The state after some more bytes; None if they are not legal."""
        if len(self.threads) == 1:
            position, stack = self.threads[0]
            if isinstance(position, InString) and not position.pending and not _NOT_PLAIN.search(piece):
                whole = position.take_plain(piece)
                if whole is not None:
                    return State(((whole, stack),))
        state = self
        for byte in piece:
            following = state.step(byte)
            if following is None:
                return None
            state = following
        return state

    def next_bytes(self) -> set[int]:
        return set().union(*(position.next_bytes() for position, _ in self.threads if position is not None))

    def forced(self) -> tuple[bytes, State]:
        """The next bytes, if only these are legal, and the state after them. The longest runs come in parts."""
        state = self
        forced = bytearray()
        while not state.is_complete and len(forced) < MAX_FORCED_BYTES:
            choice = state.next_bytes()
            if len(choice) != 1:
                break
            (byte,) = choice
            following = state.step(byte)
            if following is None:
                break
            forced.append(byte)
            state = following
        return bytes(forced), state

    def closing(self) -> bytes:
        """The shortest text to the end. It takes the place of a character whose bytes are not all there yet."""
        position, stack = min(self.threads, key=_cost)
        if position is None:
            return b""
        literal, symbols = position.shortest()
        closing = [literal]
        waiting = [*symbols, *_symbols(stack)]
        waiting.reverse()
        while waiting:
            literal, symbols = waiting.pop().start(shortest=True).shortest()
            closing.append(literal)
            waiting.extend(reversed(symbols))
        return b"".join(closing)


def _push(symbols: Iterable[Symbol], stack: Frame | None) -> Frame | None:
    for symbol in reversed(tuple(symbols)):
        depth, cost = (stack.depth, stack.cost) if stack is not None else (0, 0)
        stack = Frame(symbol, stack, depth + 1, symbol.cost + cost)
    return stack


def _settle(position: Position, stack: Frame | None, threads: list[Thread]) -> None:
    """Stay at the position, and go on to what follows where its symbol may end."""
    waiting: list[tuple[Position, Frame | None]] = [(position, stack)]
    # Alternatives of alternatives may lead to the same place a million times. Known by identity, and so kept alive.
    entered: dict[tuple[int, int], tuple[Symbol, Frame | None]] = {}
    while waiting and len(threads) < MAX_THREADS:
        position, stack = waiting.pop()
        if not isinstance(position, End):
            threads.append((position, stack))
        for symbols in position.ends:
            if symbols:
                symbol, below = symbols[0], _push(symbols[1:], stack)
            elif stack is not None:
                symbol, below = stack.symbol, stack.below
            else:
                threads.append((None, None))
                continue
            if (id(symbol), id(below)) not in entered:
                entered[id(symbol), id(below)] = symbol, below
                depth = below.depth + 1 if below is not None else 1
                waiting.append((symbol.start(shortest=depth > MAX_OPEN), below))


def _symbols(stack: Frame | None) -> Iterable[Symbol]:
    while stack is not None:
        yield stack.symbol
        stack = stack.below


def _cost(thread: Thread) -> float:
    position, stack = thread
    return (position.cost if position is not None else 0) + (stack.cost if stack is not None else 0)
