"""Bytes of tokens into text that can be shown: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Collects the pieces of tokens and gives out the text that is certain.

    A character whose bytes are spread over several tokens is held back until it is whole; so is text that may turn
    out to be the beginning of a stop string.
    """

    __slots__ = ("_decoder", "_held", "_stop", "stopped")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False  # a stop string was met; nothing follows

    def push(self, piece: bytes) -> str:
        """Take the next token's bytes; return the text that is now certain, without any stop string."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece)
        # The one that ends first, as if the text had come a character at a time.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._give(min(found)[1])
        return self._give(len(self._held) - self._doubtful())

    def finish(self) -> str:
        """The text that was held back. The bytes of a character that never became whole are dropped."""
        return "" if self.stopped else self._give(len(self._held))

    def close(self, ending: bytes) -> str:
        """The text that was held back, and `ending`; a character that is not whole is finished by it, or dropped."""
        finishes = 0x80 <= ending[0] < 0xC0  # https://www.rfc-editor.org/rfc/rfc3629#section-3
        return self.push(ending) + self.finish() if finishes else self.finish() + ending.decode()

    def _doubtful(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
