"""POST /chat: the contract of the service that this one replaces, and what it may be asked beyond that."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from typing import Any

import model_loader
from llamafn.api.body import anything, boolean, integer, mapping, number, parse, text, texts
from llamafn.errors import InvalidSchema
from llamafn.settings import Settings
from llamafn.timeline import COLD_START
from llamafn.web import Request, Response, event_stream, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint
    from llamafn.engine.engine import Generation

log = logging.getLogger("llamafn")

DEFAULT_MAX_TOKENS = 256
# Low: the answers are facts and JSON.
TEMPERATURE = 0.2
MAX_STOPS = 16


def chat(request: Request, settings: Settings) -> Response:
    """An answer to `context`, under the system prompt `system`."""
    fields = (
        text("system"),
        anything("context", required=True),
        integer("max_tokens", 1, settings.n_ctx),
        boolean("stream"),
        mapping("schema"),
        number("temperature", 0, 2),
        integer("seed", -(2**63), 2**63 - 1),
        texts("stop", MAX_STOPS),
        integer("timeout_ms", 1, 3_600_000),
    )
    values, unknown = parse(request.body(settings.max_body_bytes), fields)
    if "timeout_ms" in values:
        request.deadline = request.deadline.at_most(values["timeout_ms"] / 1000)
    constraint = _constraint(values.get("schema", settings.chat_schema))
    stop = values.get("stop", [])
    engine = model_loader.get_model(settings, request.deadline)
    from llamafn.engine.sampling import Sampling

    generation = engine.generate(
        engine.prompt(_messages(values, settings), keep="system" not in values),
        Sampling(temperature=values.get("temperature", TEMPERATURE), seed=values.get("seed")),
        max_tokens=values.get("max_tokens", min(DEFAULT_MAX_TOKENS, settings.n_ctx)),
        stop=[stop] if isinstance(stop, str) else stop,
        deadline=request.deadline,
        is_gone=request.is_gone,
        constraint=constraint,
    )
    if values.get("stream"):
        return event_stream(_events(generation, unknown))
    with generation:
        content = "".join(generation)
    headers = [("Server-Timing", COLD_START.server_timing())] if _ends_cold_start(generation) else []
    return json_response({"content": content, **_summary(generation, unknown)}, headers=headers)


def _constraint(schema: dict[str, Any] | None) -> Constraint | None:
    if schema is None:
        return None
    from llamafn.engine.constraint.schema import compile_schema

    try:
        return compile_schema(schema)
    except InvalidSchema as error:
        error.param = "schema"
        raise


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
            _ends_cold_start(generation)
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
            "queue_ms": _milliseconds(generation.asked_at, generation.began_at),
            "prefill_ms": _milliseconds(generation.began_at, generation.first_token_at),
            "decode_ms": _milliseconds(generation.first_token_at, generation.ended_at),
        },
    }
    if generation.forced_tokens:
        summary["usage"]["completion_tokens_details"] = {"forced_tokens": generation.forced_tokens}
    if unknown:
        summary["warnings"] = [f"unknown key {key!r} was ignored" for key in unknown]
    return summary


def _milliseconds(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else round((ended - began) * 1000, 1)


def _ends_cold_start(generation: Generation) -> bool:
    """Whether this answer's first token was the instance's first."""
    if generation.began_at is None or generation.first_token_at is None:
        return False
    if not COLD_START.finish(generation.began_at, generation.first_token_at):
        return False
    log.info(json.dumps({"event": "cold start", "phases": COLD_START.to_json()}))
    return True
