"""The engine: messages in, an answer out, a piece at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from llamafn.deadline import Deadline
from llamafn.engine.decoder import Decoder
from llamafn.engine.logprobs import TokenScore
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampling
from llamafn.engine.snapshot import SnapshotStore
from llamafn.engine.template import ChatTemplate
from llamafn.engine.text import TextStream
from llamafn.engine.turn import Prompt, Turn
from llamafn.errors import BadRequest, PromptTooLong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint

# How long an answer may keep silent before it gives an empty piece.
HEARTBEAT_SECONDS = 5.0
# Stands for the user's words when the template is asked what comes before them.
_USER_MARK = "\u27e6user\u27e7"


class Engine:
    """A model with its context, ready to answer. Methods may be called from any thread."""

    def __init__(
        self,
        model: Model,
        template: ChatTemplate,
        *,
        n_ctx: int,
        n_threads: int,
        parallel: int,
        max_queue: int,
        snapshots: SnapshotStore | None = None,
    ) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self._template = template
        self._snapshots = snapshots
        self._decoder = Decoder(
            model, n_ctx=n_ctx, n_threads=n_threads, parallel=parallel, max_queue=max_queue, snapshots=snapshots
        )
        # System prompts are few and the same: (text, tokens) that come before the user's part, for each.
        self._prefixes: dict[str | None, tuple[str, list[int]]] = {}

    def close(self) -> None:
        """Free the context and the model. No answer may be under way."""
        self._decoder.close()
        self.model.close()

    @property
    def answering(self) -> int:
        """Answers that are being written."""
        return self._decoder.answering

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return self._decoder.queued

    @property
    def takes_tools(self) -> bool:
        """Whether the model's template shows tools to it, in a format whose calls can be read."""
        return self._template.takes_tools

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        opening: str = "",
        keep: bool = False,
    ) -> Prompt:
        """The tokens of a conversation, as the model's own template renders it.

        `opening` is how the answer has to begin; it is part of the prompt, not of what is generated.
        With `keep`, a snapshot of what comes before the user's words is saved the first time, not the second.

        Raises:
            BadRequest: the template refuses the messages.
            PromptTooLong: it leaves no room in the context for a single token of an answer.
        """
        text = self._template.render(messages, tools) + opening
        tokens = self._fitting(text)
        # Tools come before the user's part, too, and change with each caller: such a prefix is not looked for.
        return Prompt(tokens, 0 if tools else self._boundary(messages, text, tokens), keep=keep)

    def raw_prompt(self, text: str) -> Prompt:
        """The tokens of a text that the model is to continue as it stands, without its chat template.

        Raises:
            PromptTooLong, BadRequest: it leaves no room for an answer, or has no token at all.
        """
        tokens = self._fitting(text)
        if not tokens:
            raise BadRequest("The prompt is empty; this model needs at least one token to begin with.", param="prompt")
        return Prompt(tokens)

    def _fitting(self, text: str) -> list[int]:
        tokens = self._tokenize(text)
        if len(tokens) >= self.n_ctx:
            raise PromptTooLong(
                f"The prompt has {len(tokens)} tokens, {len(tokens) - self.n_ctx + 1} more than fit: the context is "
                f"{self.n_ctx} tokens (N_CTX), and the answer needs at least one.",
                hint="Shorten the system prompt or the message, or raise N_CTX.",
            )
        return tokens

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        deadline: Deadline,
        is_gone: Callable[[], bool] | None = None,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> Generation:
        """An answer, to be iterated over. `is_gone` says whether the client has left; it is called from a thread.

        The answer is cut to what the context has room for. `top_logprobs` asks for its tokens' scores, each with so
        many of the likeliest tokens; there are none under a constraint. Under a `constraint` it is a whole document
        all the same, and also when the deadline ends it.

        Raises:
            BadRequest: the constraint's shortest document has more than `max_tokens`, or there are stop strings, too.
        """
        room = min(max_tokens, self.n_ctx - len(prompt.tokens))
        if constraint is not None:
            self._check_room(constraint, room, max_tokens)
            if stop:
                raise BadRequest("`stop` beside a schema would cut the document short.", param="stop")
        return Generation(
            self.model, self._decoder, prompt, sampling, room, stop, deadline, is_gone, top_logprobs, constraint
        )

    def read(self, system: str, deadline: Deadline) -> list[int]:
        """Read a system prompt, so that it is known, and keep a snapshot of it.

        Returns the tokens that come before any user's words.

        Raises:
            DeadlinePassed: it could not be read in time. What was read is kept.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": _USER_MARK}]
        prompt = self.prompt(messages, keep=True)
        with self.generate(prompt, Sampling(temperature=0), max_tokens=1, deadline=deadline) as reading:
            for _ in reading:
                pass
        if reading.finish_reason == "deadline":
            deadline.check("the system prompt was being read")
        return prompt.prefix

    def snapshot_of(self, prefix: Sequence[int]) -> str | None:
        """The path of the snapshot of these tokens, if there is one."""
        return None if self._snapshots is None else self._snapshots.path_of(prefix)

    def _check_room(self, constraint: Constraint, room: int, max_tokens: int) -> None:
        from llamafn.engine.constraint.guide import least_tokens

        least = least_tokens(constraint, self.model)
        if least > room:
            found = f"max_tokens is {max_tokens}" if room == max_tokens else f"the prompt leaves room for {room}"
            raise BadRequest(
                f"The shortest document under the schema has {least} tokens, and {found}.",
                hint="Raise max_tokens." if room == max_tokens else "Shorten the prompt, or raise N_CTX.",
                param="max_tokens",
            )

    def _tokenize(self, text: str) -> list[int]:
        # A template that writes the beginning-of-sequence token itself must not get it twice.
        add_special = not (self.model.bos and text.startswith(self.model.bos))
        return self.model.tokenize(text, add_special=add_special, parse_special=True)

    def _boundary(self, messages: Sequence[Mapping[str, Any]], text: str, tokens: list[int]) -> int:
        """How many tokens come before the words of the first message that is not the system's."""
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        known = self._prefixes.get(system)
        if known is None or not text.startswith(known[0]):
            opening = [*messages[: system is not None], {"role": "user", "content": _USER_MARK}]
            prefix_text = self._template.render(opening).partition(_USER_MARK)[0]
            known = (prefix_text, self._tokenize(prefix_text))
            if len(self._prefixes) >= 64:
                self._prefixes.clear()
            self._prefixes[system] = known
        boundary = min(len(known[1]), len(tokens) - 1)
        # The user's first character may have joined the last token.
        while tokens[:boundary] != known[1][:boundary]:
            boundary -= 1
        return boundary


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
        scores = _ScoresOfText(self.scores, self._model)
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
                piece = text.push(self._model.piece(token))
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


class _ScoresOfText:
    """Gives a token's score out once its text is: text may be held back, and a stop string's is dropped."""

    __slots__ = ("_given", "_held", "_model", "_out", "_text_bytes")

    def __init__(self, out: list[TokenScore], model: Model) -> None:
        self._out = out
        self._model = model
        self._held: list[TokenScore] = []
        self._given = 0  # bytes of the tokens that were given out
        self._text_bytes = 0  # of the text that was

    def push(self, score: TokenScore, text: str) -> None:
        self._held.append(score)
        self._text_bytes += len(text.encode())
        while self._held and self._given < self._text_bytes:
            self._give()

    def finish(self) -> None:
        while self._held:
            self._give()

    def _give(self) -> None:
        score = self._held.pop(0)
        self._given += len(self._model.piece(score.token))
        self._out.append(score)
