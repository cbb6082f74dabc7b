"""Plain HTTP: a request and a response that every platform's can be turned into, JSON, and server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

from llamafn.deadline import Deadline
from llamafn.errors import BodyTooLarge, HTTPError
from llamafn.record import Record

log = logging.getLogger("llamafn")

Headers = list[tuple[str, str]]


_DRAINED_BYTES = 16 << 20
_DRAIN_STEP = 1 << 18


class Request:
    """What a platform was asked.

    `headers` have lower-case names. `read_body` gives at most so many bytes of the body. `is_gone`, where the
    platform can tell, says whether the client has left. `origin` is what the platform calls this request, for the log.
    With `is_authorized`, the platform itself has checked who asks, and no key is wanted.
    """

    __slots__ = ("_read_body", "deadline", "headers", "is_authorized", "is_gone", "method", "path", "record")

    def __init__(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        read_body: Callable[[int], bytes],
        deadline: Deadline,
        is_gone: Callable[[], bool] | None = None,
        origin: Mapping[str, str] | None = None,
        is_authorized: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers or {}
        self.deadline = deadline
        self.is_gone = is_gone
        self.is_authorized = is_authorized
        self.record = Record(method, path, self.headers, origin or {})
        self._read_body = read_body

    def body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it has, or says it has, more than `limit` bytes.
        """
        said = self.headers.get("content-length", "")
        # One byte more than is allowed tells a body that is too large; a chunked one does not say its length.
        body = b"" if said.isdecimal() and int(said) > limit else self._read_body(limit + 1)
        if len(body) > limit or (said.isdecimal() and int(said) > limit):
            self._drain()
            found = f"{int(said):,}" if said.isdecimal() else f"more than {limit:,}"
            raise BodyTooLarge(
                f"The body has {found} bytes; the limit is {limit:,} (MAX_BODY_BYTES).",
                hint="Send a shorter context, or raise MAX_BODY_BYTES.",
            )
        return body

    def _drain(self) -> None:
        """Take some more of a body that is refused: a client that is still sending would not see the answer."""
        for _ in range(_DRAINED_BYTES // _DRAIN_STEP):
            if len(self._read_body(_DRAIN_STEP)) < _DRAIN_STEP:
                return


class Response:
    """An answer: `body` is the whole of it, or an iterable of its parts where it is streamed.

    A streamed body may be a generator; whoever sends it must close it, also when the client has left.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes | Iterable[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def is_streamed(self) -> bool:
        return not isinstance(self.body, bytes)


def json_response(value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """`value` as compact UTF-8 JSON; characters beyond ASCII stay as they are."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(status, [("Content-Type", "application/json; charset=utf-8"), *headers], body)


def error_response(error: HTTPError) -> Response:
    return json_response(error.to_json(), error.status, error.headers())


class ClosingBody:
    """The parts of a streamed body, and what is to be done once it was sent, or will not be.

    A generator that was never started runs none of its own code when it is closed; `on_close` is called in any case.
    """

    __slots__ = ("_on_close", "_parts")

    def __init__(self, parts: Iterable[bytes], on_close: Callable[[], None]) -> None:
        self._parts = iter(parts)
        self._on_close: Callable[[], None] | None = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is None:
            return
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            on_close()


# An event that says nothing but that the connection is alive, so that no proxy gives up: a comment.
PING = object()


def event_stream(
    events: Generator[Any, None, None], record: Record, on_close: Callable[[], None], headers: Headers
) -> Response:
    """Server-sent events, one for each JSON value, and `[DONE]` at the end; or, if something breaks, the error.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    own = [
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("X-Accel-Buffering", "no"),  # nginx and its like pass each event on at once
    ]
    return Response(200, [*own, *headers], ClosingBody(_encode_events(events, record), on_close))


def _encode_events(events: Generator[Any, None, None], record: Record) -> Generator[bytes, None, None]:
    try:
        for event in events:
            yield b": ping\n\n" if event is PING else _event(event)
        yield b"data: [DONE]\n\n"
    except HTTPError as error:
        record.error = error
        yield _event(error.to_json())
    except Exception as error:
        log.error("A stream broke.", exc_info=error)
        record.error = HTTPError("Something went wrong here; the log says what.")
        yield _event(record.error.to_json())
    finally:
        events.close()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
