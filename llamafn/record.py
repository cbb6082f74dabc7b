"""What one request was and cost: written down while it is answered, for the log and the metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamafn.engine.generation import Generation
    from llamafn.errors import HTTPError

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Record:
    """A request, from its arrival on.

    `id` is the caller's X-Request-Id if it sent one that is fit for a header, else a new one.
    """

    __slots__ = (
        "arrived_at",
        "cold",
        "error",
        "generation",
        "id",
        "method",
        "model_seconds",
        "origin",
        "path",
        "phases",
        "prompt",
        "route",
        "status",
        "streamed",
        "trace",
    )

    def __init__(self, method: str, path: str, headers: Mapping[str, str], origin: Mapping[str, str]) -> None:
        self.arrived_at = time.monotonic()
        sent = headers.get("x-request-id", "")
        self.id = sent if _REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()
        # `TRACE_ID/SPAN_ID;o=OPTIONS`. https://cloud.google.com/trace/docs/trace-context
        self.trace = re.match(r"[0-9a-f]*", headers.get("x-cloud-trace-context", ""))[0]  # type: ignore[index]
        self.origin = origin
        self.method = method
        self.path = path
        self.route: str | None = None  # the path, where there is something at it
        self.status = 0
        self.streamed = False
        self.cold: bool | None = None  # whether the model was not ready yet; None if it was not needed
        self.model_seconds = 0.0  # waited for it
        self.prompt: Any = None  # only for LOG_PROMPTS
        self.generation: Generation | None = None
        self.phases: list[dict[str, Any]] | None = None  # of the instance's cold start, which this request ended
        self.error: HTTPError | None = None

    def seconds(self) -> float:
        """Since the request's arrival."""
        return time.monotonic() - self.arrived_at

    def first_token_seconds(self) -> float | None:
        """From the request's arrival to the first token, if there is one."""
        generation = self.generation
        if generation is None or generation.first_token_at is None:
            return None
        return generation.first_token_at - self.arrived_at

    def tokens_per_second(self) -> float | None:
        """How fast the answer was written, from its first token on; None where there is no second one."""
        generation = self.generation
        if generation is None or generation.first_token_at is None or generation.ended_at is None:
            return None
        seconds = generation.ended_at - generation.first_token_at
        return (generation.completion_tokens - 1) / seconds if generation.completion_tokens > 1 else None

    def to_json(self, *, with_prompt: bool = False) -> dict[str, Any]:
        """The record as the log has it. Times are in milliseconds; what does not apply is left out."""
        said: dict[str, Any] = {
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": _ms(self.seconds()),
            **self.origin,
        }
        if self.error is not None:
            said["error"] = self.error.code
        if self.cold is not None:
            said["start"] = "cold" if self.cold else "warm"
            said["model_ms"] = _ms(self.model_seconds)
        generation = self.generation
        if generation is not None:
            said["streamed"] = self.streamed
            said["finish_reason"] = generation.finish_reason or "cancelled"
            said.update(timings(generation), **tokens(generation))
        if self.phases is not None:
            said["cold_start"] = self.phases
        if with_prompt and self.prompt is not None:
            said["prompt"] = self.prompt
        return said


def timings(generation: Generation) -> dict[str, float | None]:
    """Where the time of an answer went, in milliseconds; null for what was not reached."""
    return {
        "queue_ms": _between(generation.asked_at, generation.began_at),
        "prefill_ms": _between(generation.began_at, generation.first_token_at),
        "decode_ms": _between(generation.first_token_at, generation.ended_at),
    }


def tokens(generation: Generation) -> dict[str, int]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "completion_tokens": generation.completion_tokens,
    }


def _between(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else _ms(ended - began)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
