"""A GGUF's weights and vocabulary. Once both are there it has no thread, so it may be taken through a fork."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence

from llamafn.engine.bindings import CapturedLog, llama
from llamafn.engine.excerpt import ExcerptVocabulary, load_vocabulary
from llamafn.engine.vocabulary import NativeVocabulary, Vocabulary
from llamafn.engine.vocabulary_file import Unsuitable, VocabularyFile
from llamafn.errors import ModelUnavailable
from llamafn.timeline import COLD_START

# Where a descriptor has a path.
_OPEN = "/proc/self/fd"


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
        self._named = paths
        self._files: list[int] = []
        try:
            # A path may come to name another file, or none, and parts of this one are read later on.
            for path in paths:
                self._files.append(_opened(path))
            self.paths = tuple(f"{_OPEN}/{file}" for file in self._files) if os.path.isdir(_OPEN) else paths
            self._map()
        except BaseException:
            self._close_files()
            raise

    def _map(self) -> None:
        self._vocabulary: Vocabulary | None = None
        file = _vocabulary_file(self.paths)
        self._reading: threading.Thread | None = None
        if file is not None:
            self._reading = threading.Thread(target=self._read, args=(file,), name="llamafn-vocabulary")
            self._reading.start()
        self._handle = _load(self.paths, without=file)
        if not self._handle:
            raise self._unavailable()
        if file is None:
            self._vocabulary = NativeVocabulary(self._handle, owns=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """Waits until it has been read.

        Raises:
            ModelUnavailable: it cannot be.
        """
        if self._vocabulary is None:
            if self._reading is not None:
                self._reading.join()
            if self._vocabulary is None:
                raise self._unavailable()
        return self._vocabulary

    @property
    def handle(self) -> int:
        """The `llama_model *`."""
        if self._handle is None:
            raise ValueError("the model is closed")
        return self._handle

    def close(self) -> None:
        """Free the model. Contexts made from it must be closed before."""
        if self._handle is not None:
            if self._reading is not None:
                self._reading.join()
            if self._vocabulary is not None:
                self._vocabulary.close()
            llama.llama_model_free(self._handle)
            self._handle = None
            self._close_files()

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

    def _read(self, file: VocabularyFile) -> None:
        """In a thread of its own, beside the mapping of the weights."""
        with COLD_START.phase("vocabulary"), contextlib.suppress(Unsuitable):
            try:
                file.read()
                self._vocabulary = ExcerptVocabulary(file, self.paths[0])
            except Unsuitable:
                self._vocabulary = load_vocabulary(self.paths[0])

    def _close_files(self) -> None:
        for file in self._files:
            os.close(file)

    def _unavailable(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"llama.cpp cannot load {self._named[0]!r}: {_reason(self._named)}.",
            hint="Is the file a whole GGUF of a kind that this llama.cpp knows? Fetch it again, or check MODEL.",
        )


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelUnavailable(
            f"The model file {path!r} cannot be opened: {error.strerror}.",
            hint="May this user read it? Check its owner and its permissions.",
        ) from error


def _vocabulary_file(paths: Sequence[str]) -> VocabularyFile | None:
    """None if llama.cpp has to load the vocabulary with the weights."""
    try:
        return VocabularyFile(paths[0]) if len(paths) == 1 else None
    except (OSError, Unsuitable):
        return None  # also for what is no GGUF at all: llama.cpp says what is wrong with it


def _load(paths: Sequence[str], without: VocabularyFile | None = None) -> int | None:
    """A `llama_model *`; with its own vocabulary, or `without` the one that was found in this file."""
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.load_mode = llama.LLAMA_LOAD_MODE_MMAP
    parameters.use_extra_bufts = False
    overrides = (llama.llama_model_kv_override * 3)()  # the last one, without a key, ends them
    if without is not None:
        overrides[0].key = b"tokenizer.ggml.model"
        overrides[0].tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
        overrides[0].value.val_str = b"no_vocab"
        overrides[1].key = without.value("general.architecture") + b".vocab_size"
        overrides[1].tag = llama.LLAMA_KV_OVERRIDE_TYPE_INT
        overrides[1].value.val_i64 = without.n_tokens
        parameters.kv_overrides = overrides
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
