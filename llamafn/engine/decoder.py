"""Turns in order of arrival, and the steps that move every running answer one token on.

No thread of its own decodes. Of the threads that wait for a token, one leads: it runs a step for all the answers that
are under way, hands out the tokens, and leaves the lead to the next thread that finds itself without one. A single
request so pays for no hand-over, a function that is frozen between requests has nothing half-done, and several
requests share each pass over the weights.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator

from llamafn.deadline import Deadline
from llamafn.engine.bindings import AbortFlag
from llamafn.engine.context import BATCH_TOKENS, Aborted, Chunk, Context
from llamafn.engine.logprobs import Scorer
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampler, Sampling
from llamafn.engine.snapshot import MAX_BYTES, SnapshotStore
from llamafn.engine.turn import CachedSequence, Prompt, Turn
from llamafn.errors import ClientGone, EngineError, HTTPError, QueueFull
from llamafn.timeline import COLD_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint

log = logging.getLogger("llamafn")

# How often a client's socket is looked at.
WATCH_SECONDS = 0.05


class Decoder:
    """A context, the queue for its sequences, and the steps."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_threads: int,
        parallel: int,
        max_queue: int,
        snapshots: SnapshotStore | None = None,
    ) -> None:
        self.n_ctx = n_ctx
        self._model = model
        self._abort = AbortFlag()
        self._context = Context(model, n_ctx=n_ctx, n_sequences=parallel, n_threads=n_threads, abort=self._abort)
        self._max_queue = max_queue
        self.snapshots = snapshots
        self._changed = threading.Condition()  # guards all that follows
        self._free = [CachedSequence(index) for index in range(parallel)]
        self._queue: deque[Turn] = deque()
        self._running: list[Turn] = []
        self._in_batch: list[Turn] = []
        self._leading = False
        self._ending = 0  # turns that want the context for a moment, before the next step
        self._watch: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """Free the context. No turn may be under way."""
        with self._changed:
            if self._running or self._queue:
                raise ValueError("a turn is under way")
            self._closed = True
            self._changed.notify_all()
        if self._watch is not None:
            self._watch.join()
        self._context.close()

    @property
    def answering(self) -> int:
        """Turns that are under way."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    def enter(
        self,
        prompt: Prompt,
        sampling: Sampling,
        max_tokens: int,
        deadline: Deadline,
        is_gone: Callable[[], bool] | None = None,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> Turn:
        """Join the queue, or begin at once if a sequence is free. Never waits; `next_token` does.

        `top_logprobs` asks for the tokens' scores, with so many of the likeliest.

        Raises:
            QueueFull: too many wait already.
        """
        guide = None
        if constraint is not None:
            from llamafn.engine.constraint.guide import Guide

            guide = Guide(constraint, sampling, self._model)
        sampler = guide or Sampler(sampling, self._model.vocabulary.n_tokens)
        scorer = None if top_logprobs is None else Scorer(self._model.vocabulary.n_tokens, top_logprobs)
        turn = Turn(prompt, sampler, scorer, max_tokens, deadline, is_gone, guide)
        with self._changed:
            if not self._free and len(self._queue) >= self._max_queue:
                turn.close()
                raise QueueFull(
                    f"{len(self._queue)} requests wait already, and MAX_QUEUE is {self._max_queue}.",
                    hint="Try again in a moment; or let the platform start more instances.",
                    retry_after=1 + len(self._queue),
                )
            self._queue.append(turn)
            self._begin_next()
        return turn

    def next_token(self, turn: Turn, patience: float = float("inf")) -> int | None:
        """The answer's next token. None once `turn.ended_by` says why there is none, or after `patience` seconds.

        Patience is looked at between batches, which go on meanwhile.

        Raises:
            DeadlinePassed, ClientGone: while waiting in the queue.
            EngineError: llama.cpp refused a batch, or something broke.
        """
        until = time.monotonic() + patience
        with self._changed:
            while not turn.ready:
                if turn.error is not None:
                    raise turn.error
                if turn.ended_by is not None:
                    return None
                left = until - time.monotonic()
                if left <= 0:
                    return None
                if turn.began_at is None:
                    self._wait_in_queue(turn, left)
                elif turn.awaits_snapshot:
                    self._fetch_snapshot(turn)
                elif self._leading or self._ending:
                    self._changed.wait(_timeout(left))
                else:
                    self._lead()
            return turn.ready.popleft()

    def end(self, turn: Turn) -> None:
        """Give the turn back. What was read and written stays in the cache, for a prompt that begins the same."""
        state: bytearray | None = None
        with self._changed:
            if turn.began_at is None:
                self._queue.remove(turn)
            else:
                state = self._free_sequence(turn)
            turn.close()
            self._begin_next()
            self._changed.notify_all()
        if self.snapshots is not None:
            if state is not None:
                self.snapshots.save(turn.prompt.prefix, state)
            self.snapshots.share(turn.prompt.prefix, turn.deadline)

    def _free_sequence(self, turn: Turn) -> bytearray | None:
        """Let others have the turn's sequence; returns its state if that is to be saved."""
        self._running.remove(turn)
        self._ending += 1
        while self._leading:  # the context is another thread's, which may be decoding a token of this turn
            self._changed.wait()
        self._ending -= 1
        try:
            return self._prefix_state(turn)
        except (OSError, MemoryError) as error:  # a snapshot is a luxury
            log.warning("No snapshot is kept: %s", error)
            return None
        finally:
            turn.sequence.used_at = time.monotonic()
            self._free.append(turn.sequence)
            turn.sequence = None

    def _wait_in_queue(self, turn: Turn, patience: float) -> None:
        turn.deadline.check("the request waited for its turn")
        if turn.has_left():
            raise ClientGone("The client left while its request waited for its turn.")
        if turn.is_gone is not None:
            patience = min(patience, WATCH_SECONDS)
        self._changed.wait(_timeout(min(turn.deadline.remaining(), patience)))

    def _begin_next(self) -> None:
        """Give free sequences to those who have waited longest.

        Each gets the one that knows most of its prompt; of equals, the one unused for longest.
        """
        if self._watch is None:
            self._watch = threading.Thread(target=self._watch_turns, name="llamafn-watch", daemon=True)
            self._watch.start()
        while self._free and self._queue:
            turn = self._queue.popleft()
            sequence = max(self._free, key=lambda free: (free.reusable(turn.prompt), -free.used_at))
            self._free.remove(sequence)
            turn.sequence = sequence
            if self.snapshots is not None and sequence.reusable(turn.prompt) < turn.prompt.boundary:
                turn.awaits_snapshot = self.snapshots.may_be_remote(turn.prompt.prefix)
            turn.began_at = time.monotonic()
            self._running.append(turn)
            self._changed.notify_all()  # the watch must know of its deadline

    def _fetch_snapshot(self, turn: Turn) -> None:
        """Ask for it with the lock released: other answers go on."""
        assert self.snapshots is not None
        began = time.monotonic()
        self._changed.release()
        try:
            self.snapshots.fetch(turn.prompt.prefix, turn.deadline)
        finally:
            self._changed.acquire()
            turn.awaits_snapshot = False
            COLD_START.record("snapshot fetch", began, time.monotonic())

    def _recall(self, turn: Turn) -> None:
        """Keep what the sequence knows of the prompt, or load the snapshot that knows more."""
        prompt, sequence = turn.prompt, turn.sequence
        known = sequence.reusable(prompt)
        if known < prompt.boundary:
            if self._restore(turn):
                known, is_fresh = prompt.boundary, True
            else:
                # What was begun before, in whole batches, may be gone on with; what begins like another prompt may not.
                is_begun = sequence.is_fresh and known == len(sequence.tokens) and known % BATCH_TOKENS == 0
                is_fresh = known == 0 or is_begun
                if not is_fresh and self.snapshots and self.snapshots.wants(prompt.prefix, keep=prompt.keep):
                    known, is_fresh = 0, True  # once, to be saved
            sequence.is_fresh = is_fresh
        self._forget(turn, known)
        turn.cached_tokens = len(sequence.tokens)
        turn.pending = prompt.tokens[turn.cached_tokens :]

    def _restore(self, turn: Turn) -> bool:
        began = time.monotonic()
        prefix = turn.prompt.prefix
        snapshot = self.snapshots and self.snapshots.find(prefix)
        if not self.snapshots or not snapshot:
            return False
        self._forget(turn, 0)
        if self._context.restore(turn.sequence.index, snapshot.address, snapshot.length):
            turn.sequence.tokens = prefix
        snapshot.close()
        if not turn.sequence.tokens:
            self.snapshots.refuse(prefix)
            return False
        COLD_START.record("snapshot", began, time.monotonic())
        return True

    def _prefix_state(self, turn: Turn) -> bytearray | None:
        """The state to save, if the prompt's prefix is known here and wanted as a snapshot.

        Not if it was read on top of another prompt's, in other batches than it would be alone; and not when there is
        no time.
        """
        prompt, sequence = turn.prompt, turn.sequence
        if self.snapshots is None or turn.error is not None or turn.ended_by in ("deadline", "cancelled"):
            return None
        if turn.cached_tokens is None or len(sequence.tokens) < prompt.boundary:
            return None
        if not self.snapshots.wants(prompt.prefix, keep=prompt.keep):
            self.snapshots.note(prompt.prefix)
            return None
        if not sequence.is_fresh:
            return None
        self._forget(turn, prompt.boundary)
        if len(sequence.tokens) < prompt.boundary:
            return None
        state = self._context.state(sequence.index, most_bytes=MAX_BYTES)
        if state is None:
            self.snapshots.give_up(prompt.prefix)
        return state

    def _forget(self, turn: Turn, length: int) -> None:
        """Cut the turn's sequence; what the model cannot cut (a recurrent one) has to be read again."""
        sequence = turn.sequence
        kept = self._context.cut(sequence.index, length)
        turn.pending = sequence.tokens[kept:] + turn.pending
        del sequence.tokens[kept:]

    def _lead(self) -> None:
        """Run one step. What goes wrong with one turn is that turn's error, and no other's."""
        self._leading = True
        try:
            for turn in self._running:
                if turn.cached_tokens is None and not turn.awaits_snapshot:
                    with _error_of(turn):
                        self._recall(turn)
            chunks = self._next_batch()
            if chunks:
                rows, refusal = self._decode(chunks)
                for position, (turn, chunk) in enumerate(zip(self._in_batch, chunks, strict=True)):
                    with _error_of(turn):
                        if rows is not None:
                            self._advance(turn, chunk, rows[position])
                            continue
                        self._forget(turn, chunk.start)
                        if refusal is not None:
                            raise EngineError(refusal)
        finally:
            self._in_batch = []
            self._leading = False
            self._changed.notify_all()

    def _decode(self, chunks: list[Chunk]) -> tuple[list[int] | None, str | None]:
        """Decode with the lock released. The rows of the logits, or why there are none; neither if it was aborted."""
        self._abort.clear()
        self._changed.release()
        try:
            return self._context.decode(chunks), None
        except Aborted:
            return None, None  # those who wanted it are marked; the others try again
        except EngineError as error:
            return None, error.message
        finally:
            self._changed.acquire()

    def _next_batch(self) -> list[Chunk]:
        """One token of each answer that is being written first, then as much of the prompts as there is room for."""
        room = BATCH_TOKENS
        chunks = []
        for turn in sorted(self._running, key=lambda turn: len(turn.pending)):
            if turn.ended_by is None and turn.deadline.has_passed():
                turn.ended_by = "deadline"
            if not turn.wants_step() or not room:
                continue
            start = len(turn.sequence.tokens)
            length = min(len(turn.pending), room)
            if start < turn.prompt.boundary:
                length = min(length, turn.prompt.boundary - start)
            chunks.append(
                Chunk(turn.sequence.index, turn.pending[:length], start, wants_logits=length == len(turn.pending))
            )
            self._in_batch.append(turn)
            room -= length
        return chunks

    def _advance(self, turn: Turn, chunk: Chunk, row: int) -> None:
        """Book what was read, and choose the next token once all of the prompt is."""
        turn.sequence.tokens.extend(chunk.tokens)
        turn.pending = turn.pending[len(chunk.tokens) :]
        if turn.pending or turn.ended_by is not None:
            return
        if turn.guide is not None:
            turn.pending = turn.guide.next_tokens(self._context, row, turn.remaining)
            turn.ended_by = turn.guide.ended_by
            turn.ready.extend(turn.pending)
            turn.remaining -= len(turn.pending)
            return
        token = turn.sampler.sample(self._context, row)
        if self._model.vocabulary.ends_generation(token):
            turn.ended_by = "stop"
            return
        if turn.scorer is not None:
            turn.scores.append(turn.scorer.score(self._context, row, token))
        turn.ready.append(token)
        turn.pending = [token]
        turn.remaining -= 1
        if turn.remaining <= 0:
            turn.ended_by = "length"

    def _watch_turns(self) -> None:
        """End the turns whose time is up or whose client has left, in the middle of a batch if need be."""
        while True:
            with self._changed:
                while not self._running:
                    if self._closed:
                        return
                    self._changed.wait()
                running = list(self._running)
            # Sockets are looked at without the lock.
            gone = [turn for turn in running if turn.has_left()]
            with self._changed:
                for turn in running:
                    if turn.ended_by is None and (turn in gone or turn.deadline.has_passed()):
                        turn.ended_by = "cancelled" if turn in gone else "deadline"
                        if turn in self._in_batch:
                            self._abort.set()
                        self._changed.notify_all()
                self._changed.wait(self._seconds_to_next_look())

    def _seconds_to_next_look(self) -> float | None:
        going = [turn for turn in self._running if turn.ended_by is None]
        if any(turn.is_gone is not None for turn in going):
            return WATCH_SECONDS
        return _timeout(min((turn.deadline.remaining() for turn in going), default=float("inf")))


@contextlib.contextmanager
def _error_of(turn: Turn) -> Generator[None, None, None]:
    """What goes wrong in the block is told to the one who waits for this turn."""
    try:
        yield
    except HTTPError as error:
        turn.error = error
    except Exception as error:
        log.error("An answer failed.", exc_info=error)
        turn.error = EngineError("The engine failed on this request; the log says why.")


def _timeout(seconds: float) -> float | None:
    """For `Condition.wait`, which takes None for ever and refuses infinity."""
    return None if seconds == float("inf") else max(0.0, seconds)
