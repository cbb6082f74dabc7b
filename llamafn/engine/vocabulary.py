"""llama.cpp's vocabulary: text into tokens, tokens into bytes."""

from __future__ import annotations

import ctypes
from typing import Protocol

from llamafn.engine.bindings import llama
from llamafn.errors import EngineError


class Vocabulary(Protocol):
    """A model's vocabulary, or as much of it as is needed. Methods may be called from any thread."""

    n_tokens: int
    bos: str  # the text of the beginning-of-sequence token; empty if there is none
    eos: str  # the text of the end-of-sequence token; empty if there is none

    def ends_generation(self, token: int) -> bool: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`.

        `add_special` puts the model's beginning-of-sequence token in front where its vocabulary says so;
        `parse_special` reads `<|im_start|>` and its like as the tokens they name.
        """

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for: not always whole UTF-8 characters, and none for control tokens."""

    def close(self) -> None: ...


class NativeVocabulary:
    """The vocabulary of a model that llama.cpp has loaded, `model` (a `llama_model *`).

    Whoever `owns` the model frees it with the vocabulary.
    """

    def __init__(self, model: int, *, owns: bool) -> None:
        self._model = model
        self._owns = owns
        self._handle = llama.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}
        self.n_tokens: int = llama.llama_vocab_n_tokens(self._handle)
        self.bos = self._text(llama.llama_vocab_bos(self._handle))
        self.eos = self._text(llama.llama_vocab_eos(self._handle))

    def close(self) -> None:
        if self._owns:
            llama.llama_model_free(self._model)

    def ends_generation(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._handle, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        # A token is never shorter than a byte, so this is always room enough (with 2 for special tokens).
        room = len(data) + 2
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._handle, data, len(data), tokens, room, add_special, parse_special)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes (it answered {count}).")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = llama.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(0, length)]

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = llama.llama_vocab_get_text(self._handle, token) or b""
        return text.decode(errors="replace")
