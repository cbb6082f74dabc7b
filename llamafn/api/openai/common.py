"""What both kinds of completion share.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import time
from typing import Any

from llamafn.api import generation as generations
from llamafn.api.body import ANYTHING, BOOLEAN, TEXT, Field, integer, parse, record, refuse_unknown
from llamafn.record import timings
from llamafn.settings import Settings, file_name
from llamafn.web import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.generation import Generation

# llama.cpp's own, and llama-server's. Much is left to chance at OpenAI's 1.0, for a small model.
TEMPERATURE = 0.8
MOST_TOKENS = 2**31 - 1

_INERT = "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"

FIELDS = (
    Field("model", TEXT, "Any name; the answer says which model it was."),
    *generations.SAMPLING,
    Field("max_tokens", integer(1, MOST_TOKENS), "The longest answer; the context's end is one in any case."),
    Field("n", integer(1, 1), "How many answers; one."),
    Field("stream", BOOLEAN, "Whether to send the answer as it is written, as server-sent events."),
    Field(
        "stream_options",
        record(
            Field("include_usage", BOOLEAN, "Whether a last event says what the answer cost."),
            Field("include_obfuscation", BOOLEAN, "Accepted, and has no effect."),
        ),
        "For a stream.",
    ),
    *(Field(name, ANYTHING, "Accepted, and has no effect.") for name in (*_INERT, "store", "user")),
)


def read(request: Request, settings: Settings, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The body's values.

    Raises:
        InvalidFields: also for each key that is not known: the answer would not be what was asked for.
    """
    values, unknown = parse(request.body(settings.max_body_bytes), fields)
    refuse_unknown(unknown, fields)
    return values


def model_name(settings: Settings) -> str:
    return file_name(settings.model).removesuffix(".gguf")


def envelope(request: Request, settings: Settings, prefix: str, kind: str) -> dict[str, Any]:
    """The keys that an answer and each of its chunks begin with."""
    from llamafn.engine import bindings

    return {
        "id": f"{prefix}-{request.record.id}",
        "object": kind,
        "created": int(time.time()),
        "model": model_name(settings),
        "system_fingerprint": f"llama.cpp-{bindings.version()}",
    }


def finish(generation: Generation) -> dict[str, Any]:
    """Why an answer ended, in OpenAI's words, which have none for a deadline."""
    if generation.finish_reason == "deadline":
        return {"finish_reason": "length", "deadline": True}
    return {"finish_reason": generation.finish_reason}


def bill(generation: Generation) -> dict[str, Any]:
    return {"usage": generations.usage(generation), "timings": timings(generation)}


def wants_usage(values: dict[str, Any]) -> bool:
    return bool(values.get("stream_options", {}).get("include_usage"))
