"""llama.cpp's context: the KV cache of one or more sequences, and the batches that extend it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Tokens
from typing import NamedTuple

from llamafn.engine.bindings import AbortFlag, ThreadPool, llama
from llamafn.engine.model import Model
from llamafn.errors import EngineError

# The most tokens of a prompt in one batch. Larger reads no faster on a CPU, and takes longer to stop.
BATCH_TOKENS = 256
# Off. On a CPU it writes a sixth faster while the context is nearly empty; after 1,000 tokens a fifth slower, and it
# reads the few tokens that follow a snapshot three times slower. docs/cold-start.md has the figures.
FLASH_ATTENTION = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED


class Chunk(NamedTuple):
    """Tokens to append to one sequence."""

    sequence: int
    tokens: Tokens[int]
    start: int  # position of the first one in its sequence
    wants_logits: bool  # of its last token


class Aborted(Exception):
    """The abort flag was set in the middle of a batch."""


class Context:
    """A KV cache of `n_sequences` times `n_ctx` tokens, and the threads that compute.

    Not thread-safe, and not to be taken through a fork.
    """

    def __init__(self, model: Model, *, n_ctx: int, n_sequences: int, n_threads: int, abort: AbortFlag) -> None:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = n_ctx * n_sequences
        parameters.n_seq_max = n_sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.flash_attn_type = FLASH_ATTENTION
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.no_perf = True
        abort.arm(parameters)
        self._abort = abort  # llama.cpp holds its address
        self._handle = llama.llama_init_from_model(model.handle, parameters)
        if not self._handle:
            raise EngineError(
                f"llama.cpp could not make a context of {n_sequences} x {n_ctx} tokens.",
                hint="Lower N_CTX, or give the function more memory.",
            )
        self.n_ctx = n_ctx
        self._memory = llama.llama_get_memory(self._handle)
        self._threads = ThreadPool(n_threads)
        self._threads.attach(self._handle)
        self._batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)

    @property
    def handle(self) -> int:
        """The `llama_context *`."""
        return self._handle  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._handle is not None:
            llama.llama_batch_free(self._batch)
            llama.llama_free(self._handle)
            self._threads.close()
            self._handle = None

    def decode(self, chunks: Tokens[Chunk]) -> list[int]:
        """Read the chunks in one batch of at most BATCH_TOKENS.

        Returns, for each chunk, the row of its last token's logits (meaningless where it wants none).

        Raises:
            Aborted: the abort flag was set.
            EngineError: llama.cpp refused the batch.
            After either, parts of the batch may be in the cache: cut each sequence back to where its chunk began.
        """
        batch = self._batch
        row = 0
        rows = []
        for chunk in chunks:
            for position, token in enumerate(chunk.tokens, chunk.start):
                batch.token[row] = token
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = chunk.sequence
                batch.logits[row] = False
                row += 1
            batch.logits[row - 1] = chunk.wants_logits
            rows.append(row - 1)
        batch.n_tokens = row
        result = llama.llama_decode(self._handle, batch)
        if result == 2:
            raise Aborted
        if result != 0:
            raise EngineError(f"llama.cpp could not decode a batch of {row} tokens (llama_decode answered {result}).")
        return rows

    def logits(self, row: int, n_vocab: int) -> memoryview[float]:
        """The logits of a row of the last batch, as floats; they last until the next batch."""
        pointer = llama.llama_get_logits_ith(self._handle, row)
        floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * n_vocab)).contents
        return memoryview(floats).cast("B").cast("f")

    def state(self, sequence: int, *, most_bytes: int) -> bytearray | None:
        """What the cache holds of a sequence, as llama.cpp writes it; None if that is more than `most_bytes`."""
        size = llama.llama_state_seq_get_size(self._handle, sequence)
        if size > most_bytes:
            return None
        state = bytearray(size)
        buffer = (ctypes.c_uint8 * size).from_buffer(state)
        written = llama.llama_state_seq_get_data(self._handle, buffer, size, sequence)
        del buffer
        del state[written:]
        return state

    def restore(self, sequence: int, address: int, length: int) -> bool:
        """Fill an empty sequence with what `state` gave. False if llama.cpp does not take it; it is empty then."""
        state = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        if llama.llama_state_seq_set_data(self._handle, state, length, sequence) > 0:
            return True
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def cut(self, sequence: int, length: int) -> int:
        """Forget all but the first `length` tokens of a sequence. Returns how many it kept.

        That is `length`, or 0 for models whose state cannot be cut (recurrent ones).
        """
        if llama.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return length
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0
