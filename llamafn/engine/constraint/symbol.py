"""What a grammar is made of, and a place in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


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
