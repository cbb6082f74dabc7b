"""An answer under way: tokens of the decoder into text, a piece at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from llamafn.deadline import Deadline
from llamafn.engine.decoder import Decoder
from llamafn.engine.logprobs import ScoresOfText, TokenScore
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampling
from llamafn.engine.text import TextStream
from llamafn.engine.turn import Prompt, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint

# How long an answer may keep silent before it gives an empty piece.
HEARTBEAT_SECONDS = 5.0


class Generation:
    """An answer under way: iterate for its text, a piece at a time; the rest is known once that is over.

    An empty piece says that nothing has come for HEARTBEAT_SECONDS: a stream can show that it is alive.
    The first piece enters the queue, unless `start` did. Close it, or use it in a `with`, so that the turn is given
    back.
    """

    def __init__(
        self,
        model: Model,
        decoder: Decoder,
        prompt: Prompt,
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str],
        deadline: Deadline,
        is_gone: Callable[[], bool] | None,
        top_logprobs: int | None,
        constraint: Constraint | None,
    ) -> None:
        self.finish_reason: str | None = None  # "stop", "length", "deadline" or "cancelled"
        self.prompt_tokens = len(prompt.tokens)
        self.cached_tokens = 0  # of the prompt's, that were known and not read again
        self.completion_tokens = 0
        self.forced_tokens = 0  # of those, that a schema left no choice about
        # On the monotonic clock, in seconds; None for what was not reached.
        self.asked_at = time.monotonic()
        self.began_at: float | None = None  # its turn had come
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.scores: list[TokenScore] = []  # of the text so far, where they were asked for; take what was used
        self._model = model
        self._decoder = decoder
        self._enter = partial(decoder.enter, prompt, sampling, max_tokens, deadline, is_gone, top_logprobs, constraint)
        self._turn: Turn | None = None
        self._pieces = self._run(TextStream(stop))

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Enter the queue. Never waits.

        Raises:
            QueueFull: too many wait already.
        """
        self._turn = self._enter()

    def close(self) -> None:
        """End the answer where it is."""
        self._pieces.close()
        self._end()

    def _end(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self.began_at = turn.began_at
            self.cached_tokens = turn.cached_tokens or 0
            self._decoder.end(turn)

    def _run(self, text: TextStream) -> Generator[str, None, None]:
        if self._turn is None:
            self.start()
        turn = self._turn
        assert turn is not None
        scores = ScoresOfText(self.scores, self._model)
        try:
            while True:
                token = self._decoder.next_token(turn, HEARTBEAT_SECONDS)
                if token is None:
                    if turn.ended_by is not None:
                        break
                    yield ""
                    continue
                if self.first_token_at is None:
                    self.first_token_at, self.began_at = time.monotonic(), turn.began_at
                self.completion_tokens += 1
                piece = text.push(self._model.vocabulary.piece(token))
                if turn.scores:
                    scores.push(turn.scores.popleft(), piece)
                if piece:
                    yield piece
                if text.stopped:
                    break
            self.finish_reason = "stop" if text.stopped else turn.ended_by
            closing = self._closing(turn)
            rest = text.close(closing) if closing else text.finish()
            if not text.stopped:
                scores.finish()
            if rest:
                yield rest
        finally:
            self.ended_at = time.monotonic()
            self._end()

    def _closing(self, turn: Turn) -> bytes:
        """What makes an answer under a schema a whole document that ran out of tokens or time."""
        if turn.guide is None:
            return b""
        self.forced_tokens = turn.guide.forced_tokens
        if turn.ended_by not in ("length", "deadline"):
            return b""
        closing, tokens = turn.guide.closing()
        self.completion_tokens += tokens
        self.forced_tokens += tokens
        return closing
