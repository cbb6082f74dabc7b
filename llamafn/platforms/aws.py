"""AWS Lambda: a Function URL's event in, a buffered response out.

https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from llamafn.app import App
from llamafn.deadline import Deadline
from llamafn.errors import BadRequest
from llamafn.settings import Settings
from llamafn.web import Request, Response, error_response

Event = dict[str, Any]


def lambda_handler(app: App) -> Callable[[Any, Any], Event]:
    """The app as a Lambda handler."""

    def serve(event: Any, context: Any) -> Event:
        try:
            request = _request_of(event, context, app.settings)
        except BadRequest as error:
            return _answer_of(error_response(error))
        return _answer_of(app.respond(request))

    return serve


def _request_of(event: Any, context: Any, settings: Settings) -> Request:
    http = (event.get("requestContext") or {}).get("http") if isinstance(event, dict) else None
    if not isinstance(http, dict) or event.get("version") != "2.0":
        found = sorted(event) if isinstance(event, dict) else type(event).__name__
        raise BadRequest(
            f"This event is not a Function URL's: expected version 2.0 and requestContext.http, found {found}.",
            hint="Call the function through its Function URL.",
        )
    body = _body_of(event)
    return Request(
        http["method"],
        event.get("rawPath") or "/",
        headers=event.get("headers") or {},
        read_body=lambda limit: body[:limit],
        deadline=_deadline(context, settings),
        origin={"lambda_request_id": context.aws_request_id},
    )


def _body_of(event: Event) -> bytes:
    text = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return text.encode(errors="surrogatepass")  # half a pair is not UTF-8 any more, and is refused as such
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest(f"isBase64Encoded is true, but the body is not base64: {error}.") from error


def _deadline(context: Any, settings: Settings) -> Deadline:
    remaining = context.get_remaining_time_in_millis() / 1000
    return Deadline.after(min(settings.request_timeout_seconds, remaining) - settings.deadline_margin_ms / 1000)


def _answer_of(response: Response) -> Event:
    """A buffered answer; a streamed body is collected."""
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return {
        "statusCode": response.status,
        "headers": dict(response.headers),
        "body": body.decode(),
        "isBase64Encoded": False,
    }
