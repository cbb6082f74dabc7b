"""AWS Lambda: an event in, an answer out; the limits of whoever waits for it, kept to.

`aws_events` knows the shapes, `lambda_init` what happens before the first event, `lambda_runtime` how an answer leaves
in pieces.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from llamafn.app import App
from llamafn.deadline import Deadline
from llamafn.errors import AnswerTooLarge, HTTPError
from llamafn.platforms import aws_events
from llamafn.platforms.aws_events import Call
from llamafn.settings import Settings
from llamafn.web import Request, Response, error_response

log = logging.getLogger("llamafn")

# What separates the prelude from the body. application/vnd.awslambda.http-integration-response has no other mark.
PRELUDE_END = bytes(8)
# A byte of an answer is at most so many of JSON: \u0000, and é as \u00e9, which the stock client writes.
_JSON_GROWTH = 6


class LambdaContext(Protocol):
    """The part of Lambda's context object that is read."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


class LambdaHandler:
    """The app as a Lambda handler. Called, it answers whole; `stream` is for a runtime that can send pieces."""

    __slots__ = ("_app",)

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, event: Any, context: LambdaContext) -> Any:
        """The answer to an event, in the shape that its sender takes.

        Raises:
            UnknownEvent: nobody is there who could read an answer.
            HTTPError: the model cannot be had, when it was only to be kept warm. Lambda counts and reports it.
        """
        settings = self._app.settings
        if aws_events.is_ping(event):
            from llamafn.platforms import lambda_init

            return lambda_init.warm(settings, _time_of_function(context, settings))
        call = aws_events.decode(event)
        response, body = _collect(self._respond(call, context))
        answer = call.encode(response, body)
        if len(body) * _JSON_GROWTH < call.answer_bytes:
            return answer
        size = len(json.dumps(answer))
        if size <= call.answer_bytes:
            return answer
        return call.encode(*_collect(error_response(_too_large(size, call))))

    def stream(self, event: Any, context: LambdaContext) -> Generator[bytes, None, None] | None:
        """The answer in pieces, the first of which begins with the prelude; None if it has to be sent whole.

        That is so unless LAMBDA_STREAM says that the Function URL streams: a function cannot see its invoke mode.
        """
        if not self._app.settings.lambda_stream or aws_events.is_ping(event):
            return None
        call = aws_events.decode(event)
        return _pieces(self._respond(call, context)) if call.can_stream else None

    def _respond(self, call: Call, context: LambdaContext) -> Response:
        settings = self._app.settings
        seconds = min(settings.request_timeout_seconds, call.seconds) - settings.deadline_margin_ms / 1000
        return self._app.respond(
            Request(
                call.method,
                call.path,
                headers=call.headers,
                read_body=call.read_body,
                deadline=_time_of_function(context, settings).at_most(seconds),
                origin={"lambda_request_id": context.aws_request_id},
                is_authorized=call.is_authorized,
            )
        )


def lambda_handler(app: App) -> LambdaHandler:
    """The app as a Lambda handler. On Lambda, this is where INIT loads the model, if it is to."""
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        from llamafn.platforms import lambda_init  # a millisecond that the other doors do not need

        lambda_init.initialize(app.settings, os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"))
    return LambdaHandler(app)


def _time_of_function(context: LambdaContext, settings: Settings) -> Deadline:
    """Until Lambda ends the process, less the margin."""
    return Deadline.after((context.get_remaining_time_in_millis() - settings.deadline_margin_ms) / 1000)


def _too_large(size: int, call: Call) -> AnswerTooLarge:
    return AnswerTooLarge(
        f"The answer takes {size:,} bytes of JSON; whoever asked takes {call.answer_bytes:,} at most.",
        hint="Ask for fewer tokens, or stream it through a Function URL.",
    )


def _collect(response: Response) -> tuple[Response, bytes]:
    """A response and the whole of its body; what fails on the way becomes the answer."""
    if isinstance(response.body, bytes):
        return response, response.body
    with _parts_of(response) as parts:
        try:
            return response, b"".join(parts)
        except Exception as error:  # noqa: BLE001  # `_failure` logs it
            failed = _failure(error)
    return _collect(failed)


def _pieces(response: Response) -> Generator[bytes, None, None]:
    """Prelude and body. The prelude leaves with the body's first part: what fails before has a status of its own."""
    if isinstance(response.body, bytes):
        yield _prelude(response) + response.body
        return
    with _parts_of(response) as parts:
        try:
            first = next(parts, b"")
        except Exception as error:  # noqa: BLE001  # `_failure` logs it
            yield from _pieces(_failure(error))
            return
        yield _prelude(response) + first
        yield from parts


def _failure(error: Exception) -> Response:
    if isinstance(error, HTTPError):
        return error_response(error)
    log.error("An answer broke off", exc_info=error)
    return error_response(HTTPError("Something went wrong here; the log says what."))


def _prelude(response: Response) -> bytes:
    return json.dumps(aws_events.prelude(response), separators=(",", ":")).encode() + PRELUDE_END


@contextmanager
def _parts_of(response: Response) -> Generator[Iterator[bytes], None, None]:
    """The parts of a streamed body, which is closed in the end: that gives the engine's turn back."""
    assert not isinstance(response.body, bytes)
    try:
        yield iter(response.body)
    finally:
        close = getattr(response.body, "close", None)
        if close is not None:
            close()
