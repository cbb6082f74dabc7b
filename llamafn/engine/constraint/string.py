"""Strings of a number of characters: JSON's, with escapes, in UTF-8."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llamafn.engine.constraint.symbol import Position, Symbol


class String:
    """The inside of a string of `least` to `most` characters, and the quote that ends it."""

    __slots__ = ("cost", "least", "most")

    def __init__(self, least: int = 0, most: float = math.inf) -> None:
        self.least = least
        self.most = most
        self.cost: float = least + 1

    def start(self, *, shortest: bool) -> Position:
        return InString(self, 0)


class End:
    """A string whose last quote was written."""

    cost = 0.0
    ends: Sequence[tuple[Symbol, ...]] = ((),)

    def step(self, byte: int) -> Position | None:
        return None

    def next_bytes(self) -> Iterable[int]:
        return ()

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        return b"", ()


END = End()
QUOTE, BACKSLASH = b'"\\'
_ESCAPES = b'"\\/bfnrtu'
# What may begin a character, or an escape.
_IN_STRINGS = tuple(byte for byte in range(0x20, 0xF5) if byte != QUOTE and not 0x80 <= byte < 0xC2)
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
        if byte == QUOTE:
            return END if self.length >= self.string.least else None
        if self.length >= self.string.most or byte < 0x20:
            return None
        if byte == BACKSLASH or 0xC2 <= byte <= 0xF4:
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
            may_follow = (*_ESCAPES, *_HEX) if self.pending[0] == BACKSLASH else range(0x80, 0xC0)
            return (byte for byte in may_follow if self._continue(byte) is not None)
        quote = (QUOTE,) if self.length >= self.string.least else ()
        return (*quote, *_IN_STRINGS) if self.length < self.string.most else quote

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        finish, length = b"", self.length
        if self.pending[:1] == b"\\":
            finish, length = _finish_escape(self.pending), length + 1
        return finish + _FILLER * max(0, self.string.least - length) + b'"', ()

    def _continue(self, byte: int) -> Position | None:
        pending = self.pending + bytes((byte,))
        if pending[0] == BACKSLASH:
            legal = _is_escape(pending)
            whole = len(pending) == (6 if pending[1] == ord("u") else 2)
        else:
            legal = is_utf8(pending)
            whole = len(pending) == utf8_length(pending[0])
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


def utf8_length(lead: int) -> int:
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def is_utf8(partial: bytes) -> bool:
    """Whether this begins a character: https://www.rfc-editor.org/rfc/rfc3629#section-4"""
    lead, second = partial[0], partial[1]
    lowest = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    highest = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
    return lowest <= second <= highest and all(0x80 <= byte <= 0xBF for byte in partial[2:])
