"""A grammar of bytes, and where an answer stands in it.

A symbol is a rule, the inside of a string, or a number. A rule's alternatives are literal bytes followed by symbols. A
state is a set of threads: each a position inside of one symbol, and the stack of symbols that come after it. Every
position knows the least number of bytes to the end of the document, so an answer can be ended anywhere, legally.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

# Symbols on the stack, which is one for each open array or object. Beyond, only the shortest way on is legal.
MAX_OPEN = 64
# A schema whose alternatives begin alike for long is followed in so many of them.
MAX_THREADS = 256
MAX_FORCED_BYTES = 512

_NOT_PLAIN = re.compile(rb'["\\\x00-\x1f]')


class Symbol(Protocol):
    @property
    def cost(self) -> float:
        """Bytes of the shortest text; infinite if there is none."""

    def start(self, *, shortest: bool) -> Position:
        """Where it begins; with `shortest`, nothing but the shortest text follows."""


class Position(Protocol):
    @property
    def cost(self) -> float:
        """Bytes of the shortest way to the symbol's end, with what it puts on the stack."""

    @property
    def ends(self) -> Sequence[tuple[Symbol, ...]]:
        """If the symbol may end here: the symbols that follow in its place, one tuple for each way to end."""

    def step(self, byte: int) -> Position | None: ...

    def next_bytes(self) -> Iterable[int]:
        """The bytes that `step` takes."""

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        """The shortest way to the end: bytes, then symbols."""


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


class String:
    """The inside of a string of `least` to `most` characters, and the quote that ends it."""

    __slots__ = ("cost", "least", "most")

    def __init__(self, least: int = 0, most: float = math.inf) -> None:
        self.least = least
        self.most = most
        self.cost: float = least + 1

    def start(self, *, shortest: bool) -> Position:
        return InString(self, 0)


class _End:
    """A string whose last quote was written."""

    cost = 0.0
    ends: Sequence[tuple[Symbol, ...]] = ((),)

    def step(self, byte: int) -> Position | None:
        return None

    def next_bytes(self) -> Iterable[int]:
        return ()

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        return b"", ()


_END = _End()
_QUOTE, _BACKSLASH = b'"\\'
_ESCAPES = b'"\\/bfnrtu'
# What may begin a character, or an escape.
_IN_STRINGS = tuple(byte for byte in range(0x20, 0xF5) if byte != _QUOTE and not 0x80 <= byte < 0xC2)
_HEX = b"0123456789abcdefABCDEF"
# Written where a string has to be longer than the model made it.
_FILLER = b"."


class InString(NamedTuple):
    """A place in a string. `pending` are the bytes so far of an escape, or of a character in UTF-8."""

    string: String
    length: int  # characters
    pending: bytes = b""

    @property
    def ends(self) -> Sequence[tuple[Symbol, ...]]:
        return ()

    @property
    def cost(self) -> float:
        return len(self.shortest()[0]) if self.pending else max(0, self.string.least - self.length) + 1

    def step(self, byte: int) -> Position | None:
        if self.pending:
            return self._continue(byte)
        if byte == _QUOTE:
            return _END if self.length >= self.string.least else None
        if self.length >= self.string.most or byte < 0x20:
            return None
        if byte == _BACKSLASH or 0xC2 <= byte <= 0xF4:
            return InString(self.string, self.length, bytes((byte,)))
        return InString(self.string, self.length + 1) if byte < 0x80 else None

    def take_plain(self, piece: bytes) -> InString | None:
        """The place after whole characters that mean nothing but themselves; None if they are not, or too many."""
        try:
            length = self.length + len(piece.decode())
        except UnicodeDecodeError:
            return None
        return InString(self.string, length) if length <= self.string.most else None

    def next_bytes(self) -> Iterable[int]:
        if self.pending:
            may_follow = (*_ESCAPES, *_HEX) if self.pending[0] == _BACKSLASH else range(0x80, 0xC0)
            return (byte for byte in may_follow if self._continue(byte) is not None)
        quote = (_QUOTE,) if self.length >= self.string.least else ()
        return (*quote, *_IN_STRINGS) if self.length < self.string.most else quote

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        finish, length = b"", self.length
        if self.pending[:1] == b"\\":
            finish, length = _finish_escape(self.pending), length + 1
        return finish + _FILLER * max(0, self.string.least - length) + b'"', ()

    def _continue(self, byte: int) -> Position | None:
        pending = self.pending + bytes((byte,))
        if pending[0] == _BACKSLASH:
            legal = _is_escape(pending)
            whole = len(pending) == (6 if pending[1] == ord("u") else 2)
        else:
            legal = _is_utf8(pending)
            whole = len(pending) == _utf8_length(pending[0])
        if not legal:
            return None
        return InString(self.string, self.length + 1) if whole else InString(self.string, self.length, pending)


def _is_escape(escape: bytes) -> bool:
    """Whether this begins an escape of a character; halves of surrogate pairs are none."""
    if escape[1] not in _ESCAPES or not all(digit in _HEX for digit in escape[2:]):
        return False
    return not (escape[2:3] in (b"d", b"D") and escape[3:4] not in (b"", *(b"%d" % digit for digit in range(8))))


def _finish_escape(escape: bytes) -> bytes:
    """The rest of an escape: a line's end if nothing is said yet, a space or such if digits are asked for."""
    if len(escape) == 1:
        return b"n"
    digits = escape[2:]
    return (
        b"0020"[len(digits) :] if b"0020".startswith(digits) else b"0" * (4 - len(digits)) if digits != b"000" else b"a"
    )


def _utf8_length(lead: int) -> int:
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _is_utf8(partial: bytes) -> bool:
    """Whether this begins a character: https://www.rfc-editor.org/rfc/rfc3629#section-4"""
    lead, second = partial[0], partial[1]
    lowest = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    highest = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
    return lowest <= second <= highest and all(0x80 <= byte <= 0xBF for byte in partial[2:])


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
        if not isinstance(position, _End):
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
