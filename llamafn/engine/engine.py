"""The engine: messages in, an answer out, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamafn.deadline import Deadline
from llamafn.engine.decoder import Decoder
from llamafn.engine.generation import Generation
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampling
from llamafn.engine.template import ChatTemplate
from llamafn.engine.turn import Prompt, common_prefix
from llamafn.errors import BadRequest, PromptTooLong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint

# More than tokens have on average in any text; runs of white space aside, which are tokenized to their end.
_MOST_CHARACTERS_A_TOKEN = 32
# Stands for the user's words when the template is asked what comes before them.
_USER_MARK = "\u27e6user\u27e7"


class Engine:
    """A model with its context, ready to answer. Methods may be called from any thread."""

    def __init__(self, model: Model, decoder: Decoder, template: ChatTemplate) -> None:
        self.model = model
        self.n_ctx = decoder.n_ctx
        self._decoder = decoder
        self._template = template
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
        # A megabyte takes a second to tokenize: what is far too long is refused for its beginning.
        beginning = text[: self.n_ctx * _MOST_CHARACTERS_A_TOKEN]
        tokens = self._tokenize(beginning)
        if len(tokens) < self.n_ctx and beginning != text:
            tokens, beginning = self._tokenize(text), text
        if len(tokens) >= self.n_ctx:
            least = "" if beginning == text else "at least "
            raise PromptTooLong(
                f"The prompt has {least}{len(tokens)} tokens, {len(tokens) - self.n_ctx + 1} more than fit: the "
                f"context is {self.n_ctx} tokens (N_CTX), and the answer needs at least one.",
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
        snapshots = self._decoder.snapshots
        return None if snapshots is None else snapshots.path_of(prefix)

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
        add_special = not (self.model.vocabulary.bos and text.startswith(self.model.vocabulary.bos))
        return self.model.vocabulary.tokenize(text, add_special=add_special, parse_special=True)

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
        # The user's first character may have joined the last token.
        return min(common_prefix(known[1], tokens), len(tokens) - 1)
