"""A vocabulary of which only what a text needs is ever loaded.

llama.cpp takes 0.16 s and 45 MB for 151,936 tokens and as many merges, most of a load, where a prompt needs some
hundred of them. Here, the file's tokens become a dictionary (60 ms, beside the mapping of the weights), and for each
text an *excerpt* is written: the tokens that are a part of it, their merges, and every special token. llama.cpp loads
that in a millisecond, and tokenizes the text with it by its own rules.

Why that gives the same tokens: BPE joins two neighbours only if a merge does, the earliest merge first. Whatever it
joins is a part of the text, so a merge that makes no part of it is never asked for, and the others keep their order.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection

from llamafn.engine.bindings import llama
from llamafn.engine.vocabulary import NativeVocabulary
from llamafn.engine.vocabulary_file import Unsuitable, VocabularyFile
from llamafn.errors import EngineError

# No token reaches over these places: from a word over a space into the next; and in ASCII, where letters or digits end
# and something else begins, or digits begin. (A sign may be one with the letters behind it.)
_BETWEEN_WORDS = re.compile(
    r"(?<=\S)(?= )|(?<=[A-Za-z0-9])(?=[!-/:-@[-`{-~])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"
    r"|(?<=[!-/:-@[-`{-~])(?=[0-9])"
)
_MOST_CANDIDATES = 400_000  # parts of a text to look up, 40 ms; past it the whole vocabulary is loaded, in 160
_MOST_TOKENS = 8_192  # an excerpt grows with each text up to here, then it begins anew


def _spelling() -> dict[int, int]:
    """Bytes as printable characters. https://github.com/openai/gpt-2/blob/master/src/encoder.py"""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 256 + index for index, byte in enumerate(others)}


_SPELLING = _spelling()
_BYTES = {character: byte for byte, character in _SPELLING.items()}


class _Excerpt:
    """The special tokens and `parts`, loaded: `tokens` are their numbers in the whole vocabulary."""

    def __init__(self, file: VocabularyFile, parts: Collection[int] = ()) -> None:
        self.tokens = [*file.special, *sorted(parts)]
        self.known = frozenset(self.tokens)
        try:
            memory = os.memfd_create("vocabulary")
        except OSError as error:
            raise Unsuitable("no memory for an excerpt can be had") from error
        try:
            with open(memory, "wb", closefd=False) as written:
                written.write(file.excerpt(self.tokens[len(file.special) :]))
            self.vocabulary = load_vocabulary(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)


class ExcerptVocabulary:
    """See `Vocabulary`. `file` has been read; `path` is the model's, for a text that needs the whole vocabulary.

    Raises:
        Unsuitable: the vocabulary has to be loaded whole.
    """

    def __init__(self, file: VocabularyFile, path: str) -> None:
        self._file = file
        self._path = path
        self._lock = threading.Lock()
        self._special = self._excerpt = _Excerpt(file)
        self._words: frozenset[str] = frozenset()  # for which the present excerpt is enough
        self._whole: NativeVocabulary | None = None
        self._numbers = {token: number for number, token in enumerate(file.special)}
        self._longest = max(map(len, file.ids))
        self._pieces: dict[int, bytes] = {}
        self.n_tokens = file.n_tokens
        self.bos = self._special.vocabulary.bos
        self.eos = self._special.vocabulary.eos

    def close(self) -> None:
        for vocabulary in {self._special.vocabulary, self._excerpt.vocabulary, self._whole}:
            if vocabulary is not None:
                vocabulary.close()

    @property
    def loaded(self) -> Collection[int]:
        """The tokens that llama.cpp knows at present."""
        return self._excerpt.known if self._whole is None else range(self.n_tokens)

    def ends_generation(self, token: int) -> bool:
        number = self._numbers.get(token)
        return number is not None and self._special.vocabulary.ends_generation(number)

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            number = self._numbers.get(token)
            if number is None:
                known = self._file.text(token).decode(errors="replace").translate(_BYTES).encode("latin-1", "replace")
            else:
                known = self._special.vocabulary.piece(number)
            self._pieces[token] = known
        return known

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        with self._lock:
            excerpt = None if self._whole is not None else self._excerpt_for(text)
            if excerpt is not None:
                numbers = excerpt.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)
                return [excerpt.tokens[number] for number in numbers]
            if self._whole is None:
                try:
                    self._whole = load_vocabulary(self._path)
                except Unsuitable as error:
                    raise EngineError("llama.cpp cannot load the model's vocabulary any more.") from error
        return self._whole.tokenize(text, add_special=add_special, parse_special=parse_special)

    def _excerpt_for(self, text: str) -> _Excerpt | None:
        """The present excerpt if it is enough, else a new one; None if none will do."""
        words = frozenset(_BETWEEN_WORDS.split(text))
        new = words - self._words
        try:
            parts = self._parts(new)
            if not parts <= self._excerpt.known:
                parts |= self._excerpt.known
                if len(parts) > _MOST_TOKENS:
                    parts, self._words = self._parts(words), frozenset()
                self._replace(_Excerpt(self._file, parts - self._special.known))
        except Unsuitable:
            return None
        if new:
            self._words = self._words | words if len(self._words) < _MOST_TOKENS else words
        return self._excerpt

    def _replace(self, excerpt: _Excerpt) -> None:
        if self._excerpt is not self._special:
            self._excerpt.vocabulary.close()
        self._excerpt = excerpt

    def _parts(self, texts: Collection[str]) -> set[int]:
        """All tokens that are a part of one of the texts.

        Raises:
            Unsuitable: there is too much to look up.
        """
        longest, ids = self._longest, self._file.ids
        words = [text.encode().decode("latin-1").translate(_SPELLING).encode() for text in texts]
        if sum(len(word) * min(len(word), longest) for word in words) > _MOST_CANDIDATES:
            raise Unsuitable("a text has too many parts")
        return {
            token
            for word in words
            for start in range(len(word))
            for end in range(start + 1, min(start + longest, len(word)) + 1)
            if (token := ids.get(word[start:end])) is not None
        }


def load_vocabulary(path: str) -> NativeVocabulary:
    """The vocabulary of a GGUF, without the weights.

    Raises:
        Unsuitable: llama.cpp cannot load it.
    """
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    handle = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        raise Unsuitable("llama.cpp cannot load it")
    return NativeVocabulary(handle, owns=True)
