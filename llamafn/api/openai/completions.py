"""POST /v1/completions: the model goes on with a text as it stands, without its chat template."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from llamafn.api import generation as generations
from llamafn.api.body import FALSE, TEXT, Field, either, integer, list_of
from llamafn.api.openai import common, logprobs
from llamafn.settings import Settings
from llamafn.web import PING, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.engine import Engine
    from llamafn.engine.generation import Generation

# OpenAI's own.
DEFAULT_MAX_TOKENS = 16

FIELDS = (
    Field("prompt", either(TEXT, list_of(TEXT, "prompts", least=1, most=1)), "The text's beginning.", required=True),
    *common.FIELDS,
    Field("best_of", integer(1, 1), "Of how many answers to take the best; one."),
    Field("echo", FALSE, "Whether to repeat the prompt; no."),
    Field("logprobs", integer(0, 5), "Say how likely each token was, and so many of the likeliest."),
)


def fields(settings: Settings) -> tuple[Field, ...]:
    return FIELDS


def complete(request: Request, settings: Settings) -> Response:
    """A text's continuation."""
    completion = _Completion(request, settings)
    if completion.values.get("stream"):
        return generations.stream(request, settings, start=completion.start, events=completion.events)
    return generations.answer(request, settings, start=completion.start, whole=completion.whole)


class _Completion:
    """One request's values, and what depends on them."""

    def __init__(self, request: Request, settings: Settings) -> None:
        self.values = values = common.read(request, settings, FIELDS)
        prompt = values["prompt"]
        self._prompt: str = prompt if isinstance(prompt, str) else prompt[0]
        self._request = request
        self._settings = settings
        request.record.prompt = self._prompt

    def start(self, engine: Engine) -> Generation:
        values = self.values
        self._piece = engine.model.vocabulary.piece
        return engine.generate(
            engine.raw_prompt(self._prompt),
            generations.sampling(values, engine.model.vocabulary.n_tokens, temperature=common.TEMPERATURE),
            max_tokens=int(values.get("max_tokens", DEFAULT_MAX_TOKENS)),
            stop=generations.stops(values),
            deadline=self._request.deadline,
            is_gone=self._request.is_gone,
            top_logprobs=int(values["logprobs"]) if "logprobs" in values else None,
        )

    def whole(self, generation: Generation, text: str) -> dict[str, Any]:
        choice = self._choice(generation, text, 0, **common.finish(generation))
        return {**self._envelope(), "choices": [choice], **common.bill(generation)}

    def events(self, generation: Generation) -> Generator[Any, None, None]:
        envelope = self._envelope()
        if common.wants_usage(self.values):
            envelope["usage"] = None
        offset = 0
        for piece in generations.pieces(generation, self._request):
            if piece:
                yield {**envelope, "choices": [self._choice(generation, piece, offset, finish_reason=None)]}
                offset += len(piece)
            else:
                yield PING
        last = {**envelope, "choices": [self._choice(generation, "", offset, **common.finish(generation))]}
        bill = common.bill(generation)
        if common.wants_usage(self.values):
            yield last
            yield {**envelope, "choices": [], **bill}
        else:
            yield {**last, "timings": bill["timings"]}

    def _envelope(self) -> dict[str, Any]:
        return common.envelope(self._request, self._settings, "cmpl", "text_completion")

    def _choice(self, generation: Generation, text: str, offset: int, **finish: Any) -> dict[str, Any]:
        scores, generation.scores[:] = list(generation.scores), []
        said = logprobs.of_text(scores, self._piece, offset) if "logprobs" in self.values else None
        return {"text": text, "index": 0, "logprobs": said, **finish}
