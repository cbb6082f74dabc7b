"""A GGUF's weights and vocabulary. Holds no threads, so it may be loaded before a fork and used after."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from llamafn.engine.bindings import CapturedLog, llama
from llamafn.errors import EngineError, ModelUnavailable


class Model:
    """A loaded GGUF; several `paths` are the parts of a split one, in order.

    Tensors are mapped, not read, and not repacked into CPU-specific layouts: loading is sooner, memory is shared
    between processes, and a file whose end is still arriving can be loaded. docs/cold-start.md has the figures.

    Raises:
        ModelUnavailable: no such file, or llama.cpp cannot load it; the message holds its reason.
    """

    def __init__(self, *paths: str) -> None:
        for path in paths:
            if not os.path.isfile(path):
                raise ModelUnavailable(
                    f"There is no model file at {path!r}.",
                    hint="Check MODEL and LOCAL_MODEL_PATH: does the path exist, and may this user read it?",
                )
        self.paths = paths
        self._handle = _load(paths)
        if not self._handle:
            raise ModelUnavailable(
                f"llama.cpp cannot load {paths[0]!r}: {_reason(paths)}.",
                hint="Is the file a whole GGUF of a kind that this llama.cpp knows? Fetch it again, or check MODEL.",
            )
        self._vocab = llama.llama_model_get_vocab(self._handle)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._handle)
        self._pieces: dict[int, bytes] = {}

    @property
    def handle(self) -> int:
        """The `llama_model *`."""
        if self._handle is None:
            raise ValueError("the model is closed")
        return self._handle

    def close(self) -> None:
        """Free the model. Contexts made from it must be closed before."""
        if self._handle is not None:
            llama.llama_model_free(self._handle)
            self._handle = None

    @property
    def description(self) -> str:
        """Architecture, size and quantisation, such as `llama 135M Q4_1`."""
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def metadata(self, key: str) -> str | None:
        """A scalar value of the GGUF's metadata, as text."""
        length = llama.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def bos(self) -> str:
        """The text of the beginning-of-sequence token; empty if there is none."""
        return self._token_text(llama.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """The text of the end-of-sequence token; empty if there is none."""
        return self._token_text(llama.llama_vocab_eos(self._vocab))

    def ends_generation(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`.

        `add_special` puts the model's beginning-of-sequence token in front where its vocabulary says so;
        `parse_special` reads `<|im_start|>` and its like as the tokens they name.
        """
        data = text.encode()
        # A token is never shorter than a byte, so this is always room enough (with 2 for special tokens).
        room = len(data) + 2
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes (it answered {count}).")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for: not always whole UTF-8 characters, and none for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(0, length)]

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = llama.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode(errors="replace")


def _load(paths: Sequence[str]) -> int | None:
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.load_mode = llama.LLAMA_LOAD_MODE_MMAP
    parameters.use_extra_bufts = False
    if len(paths) == 1:
        return llama.llama_model_load_from_file(os.fsencode(paths[0]), parameters)  # type: ignore[no-any-return]
    parts = (ctypes.c_char_p * len(paths))(*map(os.fsencode, paths))
    return llama.llama_model_load_from_splits(parts, len(paths), parameters)  # type: ignore[no-any-return]


def _reason(paths: Sequence[str]) -> str:
    """What llama.cpp says when it tries again with its log on: loading fails fast, so once more costs little."""
    with CapturedLog() as log:
        handle = _load(paths)
        if handle:
            llama.llama_model_free(handle)
    return "; ".join(log.errors) or "it gives no reason"
