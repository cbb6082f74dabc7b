"""POST /chat: the contract of the service that this one replaces, and what it may be asked beyond that."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import model_loader
from llamafn.api.body import anything, boolean, integer, parse, text
from llamafn.settings import Settings
from llamafn.timeline import COLD_START
from llamafn.web import Request, Response, event_stream, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.engine import Generation

DEFAULT_MAX_TOKENS = 256
# Low: the answers are facts and JSON.
TEMPERATURE = 0.2


def chat(request: Request, settings: Settings) -> Response:
    """An answer to `context`, under the system prompt `system`."""
    fields = (
        text("system"),
        anything("context", required=True),
        integer("max_tokens", 1, settings.n_ctx),
        boolean("stream"),
    )
    values, unknown = parse(request.body(settings.max_body_bytes), fields)
    engine = model_loader.get_model(settings, request.deadline)
    from llamafn.engine.sampling import Sampling

    generation = engine.generate(
        engine.prompt(_messages(values, settings)),
        Sampling(temperature=TEMPERATURE),
        max_tokens=values.get("max_tokens", min(DEFAULT_MAX_TOKENS, settings.n_ctx)),
        deadline=request.deadline,
        is_gone=request.is_gone,
    )
    if values.get("stream"):
        return event_stream(_events(generation, unknown))
    with generation:
        content = "".join(generation)
    COLD_START.mark("first answer")
    return json_response({"content": content, **_summary(generation, unknown)})


def _messages(values: dict[str, Any], settings: Settings) -> list[dict[str, str]]:
    system = values.get("system", settings.default_system)
    context = values["context"]
    if not isinstance(context, str):
        context = json.dumps(context, ensure_ascii=False, separators=(",", ":"))
    messages = [{"role": "user", "content": context}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _events(generation: Generation, unknown: list[str]) -> Generator[dict[str, Any], None, None]:
    with generation:
        for piece in generation:
            COLD_START.mark("first token")
            yield {"content": piece}
    yield _summary(generation, unknown)


def _summary(generation: Generation, unknown: list[str]) -> dict[str, Any]:
    """What follows the text: why it ended, what it cost, and what was not understood of the request."""
    summary: dict[str, Any] = {
        "finish_reason": generation.finish_reason,
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        },
        "timings": {
            "queue_ms": round(generation.queue_seconds * 1000, 1),
            "prefill_ms": round(generation.prefill_seconds * 1000, 1),
            "decode_ms": round(generation.decode_seconds * 1000, 1),
        },
    }
    if unknown:
        summary["warnings"] = [f"unknown key {key!r} was ignored" for key in unknown]
    return summary
