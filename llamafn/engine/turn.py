"""One answer's place in the engine: what it reads, what it has written, and where that is kept."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens

from llamafn.deadline import Deadline
from llamafn.engine.logprobs import Scorer, TokenScore
from llamafn.engine.sampling import Sampler
from llamafn.errors import HTTPError

log = logging.getLogger("llamafn")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.guide import Guide

# How many tokens an answer may be ahead of the thread that reads it, while another thread leads.
READ_AHEAD_TOKENS = 8
# Reuse that saves less than this is not worth reading the same prompt in other batches, which round differently.
WORTHWHILE_REUSE_TOKENS = 64


class Prompt:
    """Tokens to read, and the `boundary`: how many of them come before the user's part.

    A prefill always splits at the boundary, so that its first part is the same whoever asks, and can be kept.
    """

    __slots__ = ("boundary", "keep", "tokens")

    def __init__(self, tokens: list[int], boundary: int = 0, *, keep: bool = False) -> None:
        self.tokens = tokens
        self.boundary = boundary
        self.keep = keep  # its prefix is worth a snapshot the first time it is read

    @property
    def prefix(self) -> list[int]:
        return self.tokens[: self.boundary]


class CachedSequence:
    """One sequence of the KV cache."""

    __slots__ = ("index", "is_fresh", "tokens", "used_at")

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: list[int] = []  # what the cache holds
        self.used_at = 0.0
        self.is_fresh = True  # the part before the boundary was read from its first token, or comes from a snapshot

    def reusable(self, prompt: Prompt) -> int:
        """How many of the prompt's tokens to take from here: not all that could be.

        One token at least must be read, to have its logits. And a prompt is read in the same batches as the first time
        where that costs little: batches of other sizes round differently, and at temperature 0 the same request should
        have the same answer. So what lies past the boundary is only reused if it saves much, as in a long
        conversation, and not at all if the whole prompt is known, which is the same request again. The same holds for
        the beginning of another system prompt.
        """
        known = common_prefix(self.tokens, prompt.tokens)
        last = len(prompt.tokens) - 1
        if known > last or prompt.boundary <= known < prompt.boundary + WORTHWHILE_REUSE_TOKENS:
            return min(prompt.boundary, last)
        return known if known >= WORTHWHILE_REUSE_TOKENS else 0


class Turn:
    """One answer, waiting or under way. Made by `Decoder.enter`; whoever holds it must `Decoder.end` it."""

    __slots__ = (
        "_sequence",
        "awaits_snapshot",
        "began_at",
        "cached_tokens",
        "deadline",
        "ended_by",
        "error",
        "guide",
        "is_gone",
        "pending",
        "prompt",
        "ready",
        "remaining",
        "sampler",
        "scorer",
        "scores",
    )

    def __init__(
        self,
        prompt: Prompt,
        sampler: Sampler,
        scorer: Scorer | None,
        max_tokens: int,
        deadline: Deadline,
        is_gone: Callable[[], bool] | None,
        guide: Guide | None,
    ) -> None:
        self.prompt = prompt
        self.sampler = sampler
        self.guide = guide  # the sampler, if it keeps to a schema
        self.scorer = scorer
        self.remaining = max_tokens
        self.deadline = deadline
        self.is_gone = is_gone
        self.cached_tokens: int | None = None  # of the prompt, that did not have to be read; None until it is looked up
        self.pending: list[int] = []  # to be read: the rest of the prompt, or the last token
        self.ready: deque[int] = deque()  # chosen, and not taken yet
        self.scores: deque[TokenScore] = deque()  # of the tokens in `ready`, where there is a scorer
        self.awaits_snapshot = False  # it is to be fetched first, by the thread that wants the answer
        self.began_at: float | None = None  # on the monotonic clock; None while it waits in the queue
        self.ended_by: str | None = None  # "stop", "length", "deadline" or "cancelled"
        self.error: HTTPError | None = None
        self._sequence: CachedSequence | None = None

    @property
    def sequence(self) -> CachedSequence:
        if self._sequence is None:
            raise ValueError("the turn has not begun, or has ended")
        return self._sequence

    @sequence.setter
    def sequence(self, sequence: CachedSequence | None) -> None:
        self._sequence = sequence

    def has_left(self) -> bool:
        """Whether the client has. Where that cannot be told any more, it has not."""
        try:
            return self.is_gone is not None and self.is_gone()
        except Exception as error:  # noqa: BLE001 - a server's socket may be of any kind
            log.warning("Whether a client is still there cannot be told: %r", error)
            self.is_gone = None
            return False

    def close(self) -> None:
        self.sampler.close()
        if self.scorer is not None:
            self.scorer.close()

    def wants_step(self) -> bool:
        waits = self.awaits_snapshot or len(self.ready) >= READ_AHEAD_TOKENS
        return not waits and self.ended_by is None and self.error is None


def common_prefix(one: Tokens[int], other: Tokens[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])
