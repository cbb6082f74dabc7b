"""Handlers that do what ours never should, for the runtime loop: named in `_HANDLER`."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

from llamafn.app import App
from llamafn.errors import QueueFull
from llamafn.platforms.aws import LambdaHandler
from llamafn.settings import Settings
from llamafn.web import Request, Response, json_response


def echo(event: Any, context: Any) -> Any:
    """What it was given, and what AWS's client and our loop have to give alike."""
    return {
        "event": event,
        "request_id": context.aws_request_id,
        "remaining": context.get_remaining_time_in_millis(),
        "trace_id": os.environ.get("_X_AMZN_TRACE_ID"),
    }


def fail(event: Any, context: Any) -> Any:
    if event == "answer":
        return "answered"
    raise ValueError(f"no answer to {event!r}")


def too_large(event: Any, context: Any) -> Any:
    return "x" * event


class _Streams(App):
    """Streams as the path says."""

    def respond(self, request: Request) -> Response:
        if request.path == "/large":
            return json_response("x" * 7_000_000)
        return Response(200, [("Content-Type", "text/plain")], self._parts(request.path))

    def _parts(self, path: str) -> Generator[bytes, None, None]:
        if path == "/refused":
            raise QueueFull("Too many wait.", retry_after=2)
        if path == "/fails":
            raise OSError("nothing came")
        yield b"first"
        if path == "/breaks":
            raise OSError("the stream broke")
        yield b""
        yield b"last"
        while path == "/endless":
            yield bytes(4096)


streams = LambdaHandler(_Streams(Settings.from_env({"LAMBDA_STREAM": "1"})))


def register_a_hook_that_fails() -> None:
    from snapshot_restore_py import register_after_restore, register_before_snapshot

    def hook() -> None:
        raise ValueError("the hook failed")

    {"before": register_before_snapshot, "after": register_after_restore}[os.environ["FAILING_HOOK"]](hook)


if "FAILING_HOOK" in os.environ:
    register_a_hook_that_fails()
