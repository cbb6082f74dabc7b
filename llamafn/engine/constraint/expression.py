"""Regular expressions as JSON Schema has them, ECMA-262's, parsed into a tree.

Whoever validates an answer may do so with another engine, and Python's and ECMAScript's do not agree on every
character. So a class holds only what is in it for both: `\\w` no accents, which are letters to Python alone, and `.` no
character beyond U+FFFF, which are two to ECMAScript without its `u` flag.
https://json-schema.org/understanding-json-schema/reference/regular_expressions
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends in it, in order and apart

MAX_NESTED = 32
_LAST = 0xFFFF
_SURROGATES = ((0xD800, 0xDFFF),)


class Refused(Exception):
    """Not an expression, or one that is not enforced; the text says which part."""


class Class(NamedTuple):
    """One character."""

    ranges: Ranges


class Anchor(NamedTuple):
    """No character: the text's beginning, or its end."""

    is_begin: bool


class Series(NamedTuple):
    parts: tuple[Tree, ...]


class Choice(NamedTuple):
    ways: tuple[Tree, ...]


class Repeat(NamedTuple):
    part: Tree
    least: int
    most: float


Tree = Class | Anchor | Series | Choice | Repeat


def _without(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other characters."""
    kept, start = [], 0
    for first, last in sorted((*ranges, *_SURROGATES)):
        if first > start:
            kept.append((start, first - 1))
        start = max(start, last + 1)
    return (*kept, (start, _LAST)) if start <= _LAST else tuple(kept)


def _union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    return _without(_without(ranges))


def _of(characters: str) -> Ranges:
    return _union((ord(character), ord(character)) for character in characters)


_DIGITS = ((0x30, 0x39),)
_WORD = _union((*_DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
_SPACE = _of(" \t\n\r\f\v")
_ASCII = ((0, 0x7F),)
_LATIN = ((0xA1, 0x24F),)  # holds no digit and no space, to no engine
# What is in the class, and what is in its opposite, each to every engine.
_CLASSES = {
    "d": (_DIGITS, _union((*_without((*_DIGITS, *_without(_ASCII))), *_LATIN))),
    "w": (_WORD, _without((*_WORD, *_without(_ASCII)))),
    "s": (_SPACE, _union((*_without((*_SPACE, (0x1C, 0x1F), *_without(_ASCII))), *_LATIN))),
}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_ANY = _without(_of("\n\r\u2028\u2029"))


def parse(text: str) -> Tree:
    """Raises Refused."""
    parser = _Parser(text)
    tree = parser.choice(0)
    if parser.position < len(text):
        raise Refused(f"`)` at {parser.position} closes nothing")
    return tree


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    def choice(self, depth: int) -> Tree:
        if depth > MAX_NESTED:
            raise Refused(f"more than {MAX_NESTED} groups within each other")
        ways = [self._series(depth)]
        while self._take("|"):
            ways.append(self._series(depth))
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _series(self, depth: int) -> Tree:
        parts: list[Tree] = []
        while self.position < len(self._text) and self._text[self.position] not in "|)":
            part = self._atom(depth)
            parts.append(part if isinstance(part, Anchor) else self._repeated(part))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _atom(self, depth: int) -> Tree:
        start = self.position
        character = self._next()
        if character in "^$":
            return Anchor(character == "^")
        if character == ".":
            return Class(_ANY)
        if character == "(":
            return self._group(start, depth)
        if character == "[":
            return Class(self._class(start))
        if character == "\\":
            return Class(self._escape(start)[0])
        if character in "*+?{":
            raise Refused(f"`{character}` at {start} repeats nothing that can be repeated; `\\{character}` is itself")
        return Class(self._character(character, start))

    def _group(self, start: int, depth: int) -> Tree:
        if self._take("?") and not self._take(":"):
            kind = self._text[start : start + 4]
            raise Refused(f"`{kind}` at {start}: of groups, only `(…)` and `(?:…)` are enforced")
        tree = self.choice(depth + 1)
        if not self._take(")"):
            raise Refused(f"`(` at {start} is not closed")
        return tree

    def _repeated(self, part: Tree) -> Tree:
        start = self.position
        if self._take("*"):
            bounds: tuple[int, float] = (0, math.inf)
        elif self._take("+"):
            bounds = (1, math.inf)
        elif self._take("?"):
            bounds = (0, 1)
        elif self._take("{"):
            bounds = self._braces(start)
        else:
            return part
        self._take("?")  # as little as possible: the same texts match
        return Repeat(part, *bounds)

    def _braces(self, start: int) -> tuple[int, float]:
        end = self._text.find("}", start)
        inside = self._text[start + 1 : end] if end >= 0 else ""
        least, comma, most = inside.partition(",")
        if not _is_count(least) or not (_is_count(most) or most == ""):
            raise Refused(f"`{{` at {start}: expected {{n}}, {{n,}} or {{n,m}}, below 10,000; `\\{{` is a brace")
        bounds = (int(least), int(most) if most else math.inf if comma else int(least))
        if bounds[0] > bounds[1]:
            raise Refused(f"`{{{inside}}}` at {start}: the first is the larger one")
        self.position = end + 1
        return bounds

    def _class(self, start: int) -> Ranges:
        is_negated = self._take("^")
        inside: list[tuple[int, int]] = []
        outside: list[tuple[int, int]] = []
        begin = self.position
        while not self._take("]"):
            at = self.position
            here, opposite = self._member(start)
            if self._text[self.position : self.position + 1] == "-" and self._text[self.position + 1 :][:1] != "]":
                self.position += 1
                last, _ = self._member(start)
                if not _is_one(here) or not _is_one(last) or here[0][0] > last[0][0]:
                    raise Refused(f"`{self._text[at : self.position]}` at {at} is not a range of characters")
                here = ((here[0][0], last[0][0]),)
                opposite = _without(here)
            inside += here
            outside += _without(opposite)
        if self.position == begin + 1:
            raise Refused(f"`[` at {start}: engines do not agree on a class without characters")
        ranges = _without(outside) if is_negated else _union(inside)
        if not ranges:
            raise Refused(f"`[` at {start}: no character is in this class")
        return ranges

    def _member(self, start: int) -> tuple[Ranges, Ranges]:
        """What a part of a class has in it, and what its opposite has."""
        if self.position >= len(self._text):
            raise Refused(f"`[` at {start} is not closed")
        at = self.position
        character = self._next()
        if character == "\\":
            return self._escape(at)
        here = self._character(character, at)
        return here, _without(here)

    def _escape(self, start: int) -> tuple[Ranges, Ranges]:
        character = self._next() if self.position < len(self._text) else ""
        if character.lower() in _CLASSES and character:
            here, opposite = _CLASSES[character.lower()]
            return (here, opposite) if character.islower() else (opposite, here)
        if character in _CONTROLS:
            code = _CONTROLS[character]
        elif character.isascii() and character.isprintable() and character and not character.isalnum():
            code = ord(character)
        elif character in ("x", "u"):
            length = 2 if character == "x" else 4
            digits = self._text[self.position : self.position + length]
            if len(digits) < length or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise Refused(f"`\\{character}` at {start}: expected {length} hexadecimal digits")
            self.position += length
            code = int(digits, 16)
        else:
            raise Refused(f"`\\{character}` at {start} is not enforced")
        here = self._character(chr(code), start)
        return here, _without(here)

    def _character(self, character: str, start: int) -> Ranges:
        here = _of(character)
        if not here:
            raise Refused(f"{character!r} at {start}: only characters up to U+FFFF are enforced")
        return here

    def _next(self) -> str:
        self.position += 1
        return self._text[self.position - 1]

    def _take(self, character: str) -> bool:
        if self._text[self.position : self.position + 1] != character:
            return False
        self.position += 1
        return True


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
