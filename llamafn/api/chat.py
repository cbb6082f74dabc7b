"""POST /chat: the contract of the service that this one replaces, and what it may be asked beyond that."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from typing import Any

from llamafn.api import generation as generations
from llamafn.api.body import ANYTHING, BOOLEAN, OBJECT, TEXT, Field, integer, parse
from llamafn.record import timings
from llamafn.settings import Settings
from llamafn.web import PING, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.engine import Engine
    from llamafn.engine.generation import Generation

DEFAULT_MAX_TOKENS = 256
# Low: the answers are facts and JSON.
TEMPERATURE = 0.2


def fields(settings: Settings) -> tuple[Field, ...]:
    return (
        Field("system", TEXT, "The system message."),
        Field("context", ANYTHING, "The user's message: a string as it is, all else as compact JSON.", required=True),
        Field("max_tokens", integer(1, settings.n_ctx), f"The longest answer; {DEFAULT_MAX_TOKENS} by default."),
        Field("stream", BOOLEAN, "Whether to send the answer as it is written, as server-sent events."),
        Field("schema", OBJECT, "A JSON Schema: `content` is then a JSON document that follows it."),
        generations.TEMPERATURE,
        generations.SEED,
        generations.STOP,
        Field(
            "timeout_ms",
            integer(1, 3_600_000),
            "When the client gives up. The answer leaves before: by DEADLINE_MARGIN_MS, or by half of a short time.",
        ),
    )


def chat(request: Request, settings: Settings) -> Response:
    """An answer to `context`, under the system prompt `system`."""
    values, unknown = parse(request.body(settings.max_body_bytes), fields(settings))
    if "timeout_ms" in values:
        seconds, margin = values["timeout_ms"] / 1000, settings.deadline_margin_ms / 1000
        request.deadline = request.deadline.at_most(max(seconds - margin, seconds / 2))
    constraint = generations.constraint(values.get("schema", settings.chat_schema), "schema")
    messages = _messages(values, settings)
    request.record.prompt = messages

    def start(engine: Engine) -> Generation:
        return engine.generate(
            engine.prompt(messages, keep="system" not in values),
            generations.sampling(values, engine.model.vocabulary.n_tokens, temperature=TEMPERATURE),
            max_tokens=int(values.get("max_tokens", min(DEFAULT_MAX_TOKENS, settings.n_ctx))),
            stop=generations.stops(values),
            deadline=request.deadline,
            is_gone=request.is_gone,
            constraint=constraint,
        )

    if values.get("stream"):
        return generations.stream(request, settings, start=start, events=partial(_events, request, unknown))
    return generations.answer(
        request, settings, start=start, whole=lambda done, text: {"content": text, **_summary(done, unknown)}
    )


def _messages(values: dict[str, Any], settings: Settings) -> list[dict[str, str]]:
    system = values.get("system", settings.default_system)
    context = values["context"]
    if not isinstance(context, str):
        context = json.dumps(context, ensure_ascii=False, separators=(",", ":"))
    messages = [{"role": "user", "content": context}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _events(request: Request, unknown: list[str], generation: Generation) -> Generator[Any, None, None]:
    for piece in generations.pieces(generation, request):
        yield {"content": piece} if piece else PING
    yield _summary(generation, unknown)


def _summary(generation: Generation, unknown: list[str]) -> dict[str, Any]:
    """What follows the text: why it ended, what it cost, and what was not understood of the request."""
    summary: dict[str, Any] = {
        "finish_reason": generation.finish_reason,
        "usage": generations.usage(generation),
        "timings": timings(generation),
    }
    if unknown:
        summary["warnings"] = [f"unknown key {key!r} was ignored" for key in unknown]
    return summary
