"""Lambda's shapes of event: what each says of an HTTP request, and what its sender takes for an answer.

One decoding function for each shape of event, one encoding function for each shape of answer; what holds for all of
them is done once, in `decode`.

https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from llamafn.errors import BadRequest, UnknownEvent
from llamafn.web import Headers, Response

Event = dict[str, Any]

# How long each front door waits for an answer, in seconds, and how many bytes of JSON it takes for one.
REST_API_SECONDS = 29.0
HTTP_API_SECONDS = 30.0
LAMBDA_ANSWER_BYTES = 6_291_556
ALB_ANSWER_BYTES = 1 << 20

# Sources of events that keep a function warm: EventBridge's rules, its Scheduler unless it was given another input,
# and the warm-up plugins.
PING_SOURCES = ("aws.events", "aws.scheduler", "serverless-plugin-warmup", "serverless-plugin-lambda-warmup")
# {"warmup": true} is ours; {"warmer": true} and {"type": "warmer"} are lambda-warmer's and its cousins'.
PING_KEYS = ("warmup", "warmer")


class Call(NamedTuple):
    """An HTTP request, whichever event it came in, and how its sender is answered."""

    method: str
    path: str
    headers: dict[str, str]  # lower-case names
    read_body: Callable[[int], bytes]  # at most so many bytes; raises BadRequest
    seconds: float  # until the front door gives up; infinite if only the function's own limit counts
    encode: Callable[[Response, bytes], Any]  # a response and the whole of its body
    answer_bytes: int  # the most that the sender takes, as JSON
    can_stream: bool
    is_authorized: bool  # by IAM, which alone lets anybody invoke a function directly


class _Read(NamedTuple):
    """What one shape of event says, as it says it."""

    method: str
    path: str
    headers: Iterable[tuple[str, str]]
    encode: Callable[[Response, bytes], Any]
    seconds: float = float("inf")
    answer_bytes: int = LAMBDA_ANSWER_BYTES
    can_stream: bool = False
    is_authorized: bool = False
    body: bytes | None = None  # None: it is in the event's `body`


def is_ping(event: Any) -> bool:
    """Whether an event only keeps the function warm."""
    return (
        isinstance(event, dict)
        and "requestContext" not in event
        and (
            event.get("source") in PING_SOURCES
            or event.get("type") == "warmer"
            or any(event.get(key) is True for key in PING_KEYS)
        )
    )


def decode(event: Any) -> Call:
    """The request in an event.

    Raises:
        UnknownEvent: it is none that is known here; the message names what was looked for.
    """
    try:
        read = _read(event)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnknownEvent(
            f"This event has a requestContext, but is not what its sender documents: {type(error).__name__}: {error}."
        ) from error
    path = read.path or "/"
    if "%" in path:
        from urllib.parse import unquote

        path = unquote(path)
    return Call(
        read.method,
        _without_prefix(path, event),
        {name.lower(): value for name, value in read.headers},
        lambda limit: (_body(event) if read.body is None else read.body)[:limit],
        read.seconds,
        read.encode,
        read.answer_bytes,
        read.can_stream,
        read.is_authorized,
    )


def _read(event: Any) -> _Read:
    """Decode by the first shape that fits: the order tells those apart that share keys."""
    if isinstance(event, dict):
        context = event.get("requestContext")
        if isinstance(context, dict):
            if "elb" in context:
                return _read_alb(event)
            if event.get("version") == "2.0" and "http" in context:
                return _read_v2(event, context)
            if "httpMethod" in event:
                return _read_v1(event, context)
        elif "context" in event:
            return _Read("POST", "/chat", (), encode_direct, is_authorized=True, body=json.dumps(event).encode())
    keys = ", ".join(sorted(map(str, event))[:20]) if isinstance(event, dict) else ""
    raise UnknownEvent(
        "This event is none that is known here. Looked for the keys requestContext (a Function URL, API Gateway, a "
        "load balancer), source or warmup (to be kept warm) and context (a /chat body); "
        f"found {keys or type(event).__name__}.",
        hint='Call the function through its URL, or invoke it with {"context": "Hola"}.',
    )


def _read_alb(event: Event) -> _Read:
    # It takes multiValueHeaders if and only if it sends them: an attribute of the target group.
    is_multi = "multiValueHeaders" in event
    return _Read(
        event["httpMethod"],
        event["path"],
        _repeated(event) if is_multi else _plain(event),
        encode_repeated if is_multi else encode_joined,
        answer_bytes=ALB_ANSWER_BYTES,
    )


def _read_v2(event: Event, context: Event) -> _Read:
    """A Function URL's event, or an HTTP API's in format 2.0."""
    headers = _plain(event)
    if event.get("cookies"):
        headers = [*headers, ("cookie", "; ".join(event["cookies"]))]
    is_url = ".lambda-url." in context.get("domainName", "")
    return _Read(
        context["http"]["method"],
        event["rawPath"],
        headers,
        encode_v2,
        seconds=float("inf") if is_url else _left(HTTP_API_SECONDS, context.get("timeEpoch")),
        can_stream=is_url,
    )


def _read_v1(event: Event, context: Event) -> _Read:
    """A REST API's event, or an HTTP API's in format 1.0, which alone has a version."""
    limit = HTTP_API_SECONDS if event.get("version") == "1.0" else REST_API_SECONDS
    return _Read(
        event["httpMethod"],
        event["path"],
        _repeated(event) or _plain(event),
        encode_repeated,
        seconds=_left(limit, context.get("requestTimeEpoch")),
    )


def encode_v2(response: Response, body: bytes) -> Event:
    return {**prelude(response), **_encode_body(body)}


def encode_repeated(response: Response, body: bytes) -> Event:
    headers: dict[str, list[str]] = {}
    for name, value in response.headers:
        headers.setdefault(name, []).append(value)
    return {"statusCode": response.status, "multiValueHeaders": headers, **_encode_body(body)}


def encode_joined(response: Response, body: bytes) -> Event:
    return {"statusCode": response.status, "headers": _joined(response.headers), **_encode_body(body)}


def encode_direct(response: Response, body: bytes) -> Any:
    """The body itself: nobody in between wants a status. Server-sent events stay text."""
    text = body.decode()
    return json.loads(text) if ("application/json" in dict(response.headers).get("Content-Type", "")) else text


def prelude(response: Response) -> Event:
    """Status and headers in format 2.0, which is also how a streamed answer begins."""
    cookies = [value for name, value in response.headers if name.lower() == "set-cookie"]
    others = [(name, value) for name, value in response.headers if name.lower() != "set-cookie"]
    said: Event = {"statusCode": response.status, "headers": _joined(others)}
    return {**said, "cookies": cookies} if cookies else said


def _plain(event: Event) -> list[tuple[str, str]]:
    return list((event.get("headers") or {}).items())


def _repeated(event: Event) -> list[tuple[str, str]]:
    return [(name, ", ".join(values)) for name, values in (event.get("multiValueHeaders") or {}).items()]


def _joined(headers: Headers) -> dict[str, str]:
    """One value a name: repeated ones mean the same with commas between them (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _body(event: Event) -> bytes:
    text = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return text.encode(errors="surrogatepass")  # half a pair is not UTF-8 any more, and is refused as such
    import base64  # 0.7 ms, and most bodies are text

    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest(f"isBase64Encoded is true, but the body is not base64: {error}.") from error


def _encode_body(body: bytes) -> Event:
    try:
        return {"body": body.decode(), "isBase64Encoded": False}
    except UnicodeDecodeError:
        import base64

        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def _without_prefix(path: str, event: Event) -> str:
    """The path as the API's routes see it: without the stage, nor the base path of a custom domain.

    Format 2.0 has the route in `routeKey` ("POST /chat", "ANY /{proxy+}"), format 1.0 in `resource`.
    """
    template = event.get("resource") or (event.get("routeKey") or "").partition(" ")[2]
    for name, value in (event.get("pathParameters") or {}).items():
        template = template.replace(f"{{{name}+}}", value).replace(f"{{{name}}}", value)
    if template.startswith("/") and path.endswith(template):
        return template
    stage = (event.get("requestContext") or {}).get("stage") or "$default"
    if stage != "$default" and f"{path}/".startswith(f"/{stage}/"):
        return path[len(stage) + 1 :] or "/"
    return path


def _left(limit: float, asked_at_ms: Any) -> float:
    """What is left of a front door's limit, which counts from when it was asked: a cold start came in between.

    A time that cannot be true, as in a sample event that is sent again, is passed over.
    """
    waited = time.time() - asked_at_ms / 1000 if isinstance(asked_at_ms, int) else 0.0
    return limit - waited if 0 <= waited < limit else limit
