"""A byte-level BPE vocabulary as it lies in a GGUF, read without llama.cpp; and excerpts of it, GGUFs themselves.

Only vocabularies whose merges make the tokens one by one, in the same order, as training does: a token's place says
its merge's rank then. Qwen's and SmolLM's are like that; Llama 3's has more merges than tokens.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter

# Kinds of `tokenizer.ggml.pre` that split texts into words which hold no space after anything but white space.
_KINDS = (b"gpt-2", b"qwen2", b"smollm")
_MOST_SPECIAL = 4_096
_MOST_RUNS = 64

_U32, _I32, _STRING, _ARRAY = 4, 5, 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_header = struct.Struct("<4sIQQ")  # magic, version, tensors, entries of the metadata
_u32 = struct.Struct("<I")
_u64 = struct.Struct("<Q")
_array = struct.Struct("<IIQ")  # of a value: its type, its elements' type, their number
_NORMAL = struct.pack("<i", 1)  # LLAMA_TOKEN_TYPE_NORMAL

_TOKENS, _TYPES, _MERGES = (b"tokenizer.ggml." + name for name in (b"tokens", b"token_type", b"merges"))
# A string begins with its length in 8 bytes. Up to 255 that is one byte and seven NULs, and no token holds a NUL.
_AFTER_LENGTH = bytes(7)
# Some special tokens are known to llama.cpp by their text alone, whatever their type. All of those end in one of these.
_SPECIAL_ENDS = b">]["

# What reading bytes that are something else ends in.
_DAMAGE = (struct.error, IndexError, KeyError, OverflowError)


class Unsuitable(Exception):
    """This vocabulary has to be loaded whole."""


class VocabularyFile:
    """Opening takes less than a millisecond; all but `n_tokens` and `value` wants `read` first.

    `ids` has every token's text, in GPT-2's spelling of bytes; `special` are those that every excerpt must hold.

    Raises:
        Unsuitable: the file holds no such vocabulary, is damaged, or is no GGUF.
    """

    def __init__(self, path: str) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._data = mmap.mmap(file, 0, prot=mmap.PROT_READ)
        except ValueError:
            raise Unsuitable("it is empty") from None
        finally:
            os.close(file)
        self._values: dict[bytes, bytes] = {}  # each with its type, of all that are no arrays
        self._arrays: dict[bytes, int] = {}  # where their elements begin
        self.ids: dict[bytes, int] = {}
        try:
            magic, _, _, entries = _header.unpack_from(self._data)
            self._entries = self._walk(entries)
            for key, count in self._entries:
                if key == _TOKENS:
                    self.n_tokens = count
                    break
            else:
                raise Unsuitable("it has no tokens")
        except _DAMAGE as error:
            raise Unsuitable("it is damaged") from error
        if magic != b"GGUF" or self.value("tokenizer.ggml.model") != b"gpt2":
            raise Unsuitable("it is of another kind")
        if self.value("tokenizer.ggml.pre") not in _KINDS:
            raise Unsuitable("its words may hold spaces")

    def value(self, key: str) -> bytes:
        """A string of the metadata; empty if there is none, or only behind the tokens."""
        value = self._values.get(key.encode(), b"")
        return value[12:] if value[:4] == _u32.pack(_STRING) else b""

    def read(self) -> None:
        """Read the tokens: 60 ms for 151,936 of them.

        Raises:
            Unsuitable: the merges do not make the tokens one by one, or the file is damaged.
        """
        try:
            self._read_tokens()
            merges = dict(self._entries)[_MERGES]
            self.first_merged = self.ids[self._string(self._arrays[_MERGES]).replace(b" ", b"", 1)]
            self.after_merged = self.first_merged + merges
            self._find_special()
            self._write_special()
        except _DAMAGE as error:
            raise Unsuitable("it is damaged") from error

    def text(self, token: int) -> bytes:
        return self._texts[token]

    def excerpt(self, parts: Sequence[int]) -> bytes:
        """A GGUF without tensors that holds the special tokens, then `parts`, and their merges; renumbered from 0 on.

        `parts` are tokens that merges make, and not special.

        Raises:
            Unsuitable: a merge is not that of the token in its place.
        """
        count = len(self.special) + len(parts)
        merged = sorted((*self._special_merges, *parts))  # in the order of their ranks
        return b"".join(
            (
                self._special_metadata,
                *(_with_length(_TOKENS), _array.pack(_ARRAY, _STRING, count)),
                *(self._special_texts, *(_with_length(self._texts[token]) for token in parts)),
                *(_with_length(_TYPES), _array.pack(_ARRAY, _I32, count)),
                *(self._special_types, _NORMAL * len(parts)),
                *(_with_length(_MERGES), _array.pack(_ARRAY, _STRING, len(merged))),
                *(self._special_merges.get(token) or self._merge(token) for token in merged),
            )
        )

    def _read_tokens(self) -> None:
        self._texts: list[bytes] = []
        position = self._arrays[_TOKENS]
        for _ in range(_MOST_RUNS):
            run = self._run_of_tokens(position, self.n_tokens - len(self._texts))
            self._texts += run
            position += sum(map(len, run)) + 8 * len(run)
            if len(self._texts) == self.n_tokens:
                break
        else:
            raise Unsuitable("too many tokens of 256 bytes and more")
        self.ids = dict(zip(self._texts, range(self.n_tokens), strict=True))
        self._before_token = array("Q", accumulate(map(len, self._texts), initial=0))

    def _run_of_tokens(self, position: int, count: int) -> list[bytes]:
        """At most `count` tokens from `position` on, up to one of 256 bytes or more, which Qwen's vocabulary has.

        What loops over all of them runs in C. That makes this worth its while.
        """
        # Twice what Qwen's tokens take. After each length but the first, a part begins with the token before it.
        parts = self._data[position : position + 30 * count].split(_AFTER_LENGTH, count)
        end = len(parts) - 1
        if max(map(len, parts[:-1]), default=0) > 256:
            end = next(index for index, part in enumerate(parts) if len(part) > 256)
        if end == 0:
            return [self._string(position)]
        lengths = list(map(itemgetter(-1), parts[:end]))
        run = [part[:-1] for part in parts[1:end]]
        run.append(parts[end][: lengths[-1]])
        if list(map(len, run)) != lengths:
            raise Unsuitable("its tokens do not end where they should")
        return run

    def _find_special(self) -> None:
        merges = self.after_merged - self.first_merged
        types = self._arrays[_TYPES] + len(_NORMAL) * self.first_merged
        if self._data[types : types + len(_NORMAL) * merges] != _NORMAL * merges:
            raise Unsuitable("a merge makes a special token")
        if len(self.ids) != self.n_tokens:
            raise Unsuitable("there are tokens that are alike")
        named = (_u32.unpack(value[4:])[0] for key, value in self._values.items() if _is_token_id(key, value))
        self.special = sorted(
            {
                *range(self.first_merged),
                *range(self.after_merged, self.n_tokens),
                *(token for token in named if token < self.n_tokens),
                *(self.ids[text] for text in self._texts if text[-1] in _SPECIAL_ENDS),
            }
        )
        if len(self.special) > _MOST_SPECIAL:
            raise Unsuitable("there are too many special tokens")

    def _write_special(self) -> None:
        """What is the same in every excerpt."""
        number = {token: number for number, token in enumerate(self.special)}
        types = self._arrays[_TYPES]
        written = [_header.pack(b"GGUF", 3, 0, len(self._values) + 3)]
        for key, value in self._values.items():
            if _is_token_id(key, value):
                (token,) = _u32.unpack(value[4:])
                value = value[:4] + _u32.pack(number.get(token, token))
            written += (_with_length(key), value)
        self._special_metadata = b"".join(written)
        self._special_texts = b"".join(_with_length(self._texts[token]) for token in self.special)
        self._special_types = b"".join(self._data[types + 4 * token : types + 4 * token + 4] for token in self.special)
        merged = (token for token in self.special if self.first_merged <= token < self.after_merged)
        self._special_merges = {token: self._merge(token) for token in merged}

    def _walk(self, entries: int) -> Iterator[tuple[bytes, int]]:
        """Go through the metadata; give each array's key and length, with its beginning noted in `_arrays`."""
        position = _header.size
        for _ in range(entries):
            key = self._string(position)
            position += 8 + len(key)
            (kind,) = _u32.unpack_from(self._data, position)
            if kind == _ARRAY:
                _, of, count = _array.unpack_from(self._data, position)
                position += _array.size
                self._arrays[key] = position
                yield key, count
                position = self._end_of_array(key, of, count, position)
            else:
                size = 8 + len(self._string(position + 4)) if kind == _STRING else _VALUE_BYTES[kind]
                self._values[key] = self._data[position : position + 4 + size]
                position += 4 + size

    def _end_of_array(self, key: bytes, kind: int, count: int, position: int) -> int:
        if kind != _STRING:
            return position + _VALUE_BYTES[kind] * count
        if key == _TOKENS:
            return position + self._before_token[-1] + 8 * count
        if key == _MERGES:
            # Each is a byte longer than the token that it makes: there is a space in it.
            first = self.ids[self._string(position).replace(b" ", b"", 1)]
            return position + self._before_token[first + count] - self._before_token[first] + 9 * count
        for _ in range(count):
            position += 8 + len(self._string(position))
        return position

    def _string(self, position: int) -> bytes:
        (length,) = _u64.unpack_from(self._data, position)
        if position + 8 + length > len(self._data):
            raise struct.error("a string past the end")
        return self._data[position + 8 : position + 8 + length]

    def _merge(self, token: int) -> bytes:
        """The merge that makes a token, as it lies in the file."""
        rank = token - self.first_merged
        start = self._before_token[token] - self._before_token[self.first_merged] + 9 * rank
        merge = self._string(self._arrays[_MERGES] + start)
        if merge.replace(b" ", b"", 1) != self.text(token):
            raise Unsuitable("the merges do not make the tokens one by one")
        return _with_length(merge)


def _is_token_id(key: bytes, value: bytes) -> bool:
    """Whether a value of the metadata is a token's number."""
    return key.endswith(b"_token_id") and value[:4] == _u32.pack(_U32)


def _with_length(string: bytes) -> bytes:
    return _u64.pack(len(string)) + string
