"""Numbers between two bounds, digit by digit.

They are written without an exponent and with at most 15 digits: each such decimal is a double of its own, so what is
true of the digits is true of the number that a parser makes of them. Nor can a model that loops write digits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

from llamafn.engine.constraint.symbol import Position, Symbol

DIGITS = 15
# Bounds and values are integers in units of the last digit that a number can have.
_ONE = 10**DIGITS
_MOST = _ONE * _ONE - 1


class Number:
    """A number from `lowest` to `highest`, in units of 10**-15; `cost` is infinite if there is none."""

    __slots__ = ("_highest", "_is_integer", "_lowest", "cost")

    def __init__(self, *, is_integer: bool, lowest: int = -_MOST, highest: int = _MOST) -> None:
        self._is_integer = is_integer
        self._lowest = max(lowest, -_MOST)
        self._highest = min(highest, _MOST)
        rest = self.rest("")
        self.cost: float = math.inf if rest is None else len(rest)

    def start(self, *, shortest: bool) -> Position:
        return InNumber(self, "")

    def can_follow(self, text: str, character: str) -> bool:
        """Whether a number that begins with `text` may go on with `character`."""
        whole, point, _ = text.removeprefix("-").partition(".")
        if character == "-":
            allowed = not text
        elif character == ".":
            allowed = not point and whole != "" and not self._is_integer
        else:
            allowed = character.isdecimal() and (bool(point) or whole != "0")
        return allowed and self.rest(text + character) is not None

    def rest(self, text: str) -> str | None:
        """The shortest way to finish a number that begins with `text`; None if there is none."""
        if text:
            return self._rest(text)
        negative = self._rest("-")
        return _shorter(self._rest(""), None if negative is None else "-" + negative)

    def _rest(self, text: str) -> str | None:
        magnitude = text.removeprefix("-")
        if magnitude == text:
            lowest, highest = max(0, self._lowest), self._highest
        else:
            lowest, highest = max(1, -self._highest), -self._lowest
        if lowest > highest:
            return None
        whole, point, fraction = magnitude.partition(".")
        if point:
            return _rest_of_fraction(whole, fraction, lowest, highest)
        best: str | None = None
        for more in range(DIGITS - len(whole) + 1):
            if best is not None and more >= len(best):
                break
            first, last = _integers(whole, more)
            if first > last or (last + 1) * _ONE <= lowest or first * _ONE > highest:
                continue
            value = max(first, -(-lowest // _ONE))
            if value <= min(last, highest // _ONE):
                return _shorter(best, str(value)[len(whole) :])
            if not self._is_integer:
                best = _shorter(best, _decimal(len(whole), len(whole) + more, first, last, lowest, highest))
        return best


class InNumber(NamedTuple):
    """A place in a number, after `text`."""

    number: Number
    text: str

    @property
    def cost(self) -> float:
        return len(self.shortest()[0])

    @property
    def ends(self) -> Sequence[tuple[Symbol, ...]]:
        return ((),) if self.number.rest(self.text) == "" else ()

    def step(self, byte: int) -> Position | None:
        character = chr(byte)
        if character in "-.0123456789" and self.number.can_follow(self.text, character):
            return InNumber(self.number, self.text + character)
        return None

    def next_bytes(self) -> Iterable[int]:
        return (byte for byte in b"-.0123456789" if self.number.can_follow(self.text, chr(byte)))

    def shortest(self) -> tuple[bytes, tuple[Symbol, ...]]:
        return (self.number.rest(self.text) or "").encode(), ()


def lower_bound(value: float, *, exclusive: bool) -> int:
    """The least number, in units of 10**-15, that is not below `value`, nor equal to it if that is excluded."""
    scaled = _scaled(value)
    if exclusive:
        return int(scaled.to_integral_value(ROUND_FLOOR)) + 1
    return int(scaled.to_integral_value(ROUND_CEILING))


def upper_bound(value: float, *, exclusive: bool) -> int:
    return -lower_bound(-value, exclusive=exclusive)


def _scaled(value: float) -> Decimal:
    # As it is written, not as the double that is nearest: 0.1 is a tenth.
    value = min(max(value, -_ONE), _ONE)
    return Decimal(repr(value)).scaleb(DIGITS)


def _integers(whole: str, more: int) -> tuple[int, int]:
    """The first and the last integer that begins with the digits `whole` and has so many more; none: (1, 0)."""
    if whole:
        first = int(whole) * 10**more
        return (first, first + 10**more - 1) if more == 0 or whole != "0" else (1, 0)
    if more == 0:
        return 1, 0
    return (0 if more == 1 else 10 ** (more - 1)), 10**more - 1


def _decimal(written: int, digits: int, first: int, last: int, lowest: int, highest: int) -> str | None:
    """The rest, past `written` digits, of the shortest decimal in the bounds with an integer part of `digits`."""
    for decimals in range(1, DIGITS - digits + 1):
        unit = 10 ** (DIGITS - decimals)
        value = -(-max(first * _ONE, lowest) // unit) * unit
        if value <= min((last + 1) * _ONE - 1, highest):
            return f"{value // _ONE}.{value % _ONE:0{DIGITS}}"[written : digits + 1 + decimals]
    return None


def _rest_of_fraction(whole: str, fraction: str, lowest: int, highest: int) -> str | None:
    start = int(whole) * _ONE + int(fraction.ljust(DIGITS, "0"))
    end = start + 10 ** (DIGITS - len(fraction)) - 1
    for decimals in range(max(1, len(fraction)), DIGITS - len(whole) + 1):
        unit = 10 ** (DIGITS - decimals)
        value = -(-max(start, lowest) // unit) * unit
        if value <= min(end, highest):
            return f"{value % _ONE:0{DIGITS}}"[len(fraction) : decimals]
    return None


def _shorter(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return other if one is None else one
    return other if len(other) < len(one) else one
