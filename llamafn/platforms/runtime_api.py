"""A client of Lambda's Runtime API: the next event, its answer whole or in pieces, and what went wrong.

Plain sockets: http.client and what it imports take 30 ms, a fifth of INIT, for one connection to a neighbour that
always speaks the same HTTP/1.1.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming
"""

from __future__ import annotations

import base64
import json
import logging
import socket
from collections.abc import Iterable
from contextlib import closing
from typing import Any, NamedTuple

from llamafn.errors import LlamafnError

log = logging.getLogger("llamafn")

VERSION = "/2018-06-01/runtime"
ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"
ERROR_BODY = "Lambda-Runtime-Function-Error-Body"
STREAM_TYPE = "application/vnd.awslambda.http-integration-response"


class RuntimeAPIError(LlamafnError):
    """The Runtime API refused a call. `status` is HTTP's."""

    def __init__(self, call: str, status: int, body: bytes) -> None:
        super().__init__(f"Lambda's Runtime API answered {call} with {status}: {body[:500].decode(errors='replace')}")
        self.status = status


class Invocation(NamedTuple):
    """An event and what came with it."""

    request_id: str
    deadline_ms: int  # Unix time
    trace_id: str | None
    event: bytes  # JSON


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # lower-case names
    body: bytes


class RuntimeAPI:
    """`address` is `host:port`. One connection is kept; calls must not overlap."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: _Connection | None = None

    def next(self) -> Invocation:
        """Wait for an event, for hours if need be: Lambda freezes the process meanwhile.

        Raises:
            RuntimeAPIError, OSError: there is nothing to run for any more.
        """
        answer = self._call("GET", "/invocation/next", accepted=200)
        headers = answer.headers
        return Invocation(
            headers["lambda-runtime-aws-request-id"],
            int(headers["lambda-runtime-deadline-ms"]),
            headers.get("lambda-runtime-trace-id"),
            answer.body,
        )

    def respond(self, request_id: str, answer: bytes) -> None:
        self._call("POST", f"/invocation/{request_id}/response", answer, [("Content-Type", "application/json")])

    def stream(self, request_id: str, pieces: Iterable[bytes]) -> None:
        """Send each piece as it comes. If one cannot be made, that is told in trailers.

        Raises:
            RuntimeAPIError, OSError: nobody takes the answer any more.
        """
        path = f"/invocation/{request_id}/response"
        # A connection of its own: a piece cannot be sent again if an old one turns out to be closed.
        with closing(_Connection(self._address)) as connection:
            connection.begin(
                "POST",
                VERSION + path,
                [
                    ("Content-Type", STREAM_TYPE),
                    ("Lambda-Runtime-Function-Response-Mode", "streaming"),
                    ("Transfer-Encoding", "chunked"),
                    ("Trailer", f"{ERROR_TYPE}, {ERROR_BODY}"),
                ],
            )
            trailers: list[tuple[str, str]] = []
            iterator = iter(pieces)
            while True:
                try:
                    piece = next(iterator, None)
                except Exception as error:
                    log.error("A streamed answer broke off.", exc_info=error)
                    body = base64.b64encode(_to_json(describe(error))).decode()
                    trailers = [(ERROR_TYPE, _type_of(error)), (ERROR_BODY, body)]
                    break
                if piece is None:
                    break
                if piece:  # an empty chunk would be the last
                    connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n" + _lines(trailers))
            answer = connection.receive()
        if answer.status != 202:
            raise RuntimeAPIError(f"POST {path}", answer.status, answer.body)

    def fail(self, request_id: str, error: BaseException) -> None:
        """Say that an event could not be answered."""
        self._report(f"/invocation/{request_id}/error", error)

    def fail_init(self, error: BaseException) -> None:
        self._report("/init/error", error)

    def wait_for_restore(self) -> None:
        """Say that the process can be put into a snapshot; return in a copy of it. Its connections lead nowhere."""
        self._call("GET", "/restore/next", accepted=200)
        self._disconnect()

    def fail_restore(self, error: BaseException) -> None:
        self._report("/restore/error", error)

    def _report(self, path: str, error: BaseException) -> None:
        headers = [("Content-Type", "application/vnd.aws.lambda.error+json"), (ERROR_TYPE, _type_of(error))]
        self._call("POST", path, _to_json(describe(error)), headers)

    def _call(
        self, method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), *, accepted: int = 202
    ) -> _Answer:
        answer = self._exchange(method, VERSION + path, body, headers)
        if answer.headers.get("connection", "").lower() == "close":
            self._disconnect()
        if answer.status != accepted:
            raise RuntimeAPIError(f"{method} {path}", answer.status, answer.body)
        return answer

    def _exchange(self, method: str, path: str, body: bytes, headers: Iterable[tuple[str, str]]) -> _Answer:
        length = [("Content-Length", str(len(body)))] if method == "POST" else []
        is_kept = self._connection is not None
        try:
            connection = self._connection = self._connection or _Connection(self._address)
            connection.begin(method, path, [*headers, *length], body)
            return connection.receive()
        except OSError:
            self._disconnect()
            if not is_kept:
                raise
        # A kept connection may have been closed while nobody looked. An answer that did arrive is refused, not doubled.
        return self._exchange(method, path, body, headers)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """HTTP/1.1 over one socket, as far as the Runtime API speaks it. Waits without limit."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host = address
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")

    def begin(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        lines = _lines([("Host", self._host), ("User-Agent", "llamafn"), *headers])
        self.send(f"{method} {path} HTTP/1.1\r\n".encode() + lines + body)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> _Answer:
        status = int(self._line().split(b" ", 2)[1])
        headers = {}
        while line := self._line():
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._chunks()
        else:
            body = self._read(int(headers.get("content-length", 0)))
        return _Answer(status, headers, body)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _chunks(self) -> bytes:
        chunks = []
        while size := int(self._line().partition(b";")[0], 16):
            chunks.append(self._read(size))
            self._line()
        while self._line():
            pass  # trailers
        return b"".join(chunks)

    def _line(self) -> bytes:
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("The Runtime API closed the connection.")
        return line.rstrip(b"\r\n")

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise ConnectionResetError(f"The Runtime API closed the connection {size - len(data)} bytes early.")
        return data


def describe(error: BaseException) -> dict[str, Any]:
    """What the invoker is told of an error. The stack trace stays in the log."""
    message = str(error)
    if isinstance(error, LlamafnError) and error.hint:
        message = f"{message} {error.hint}"
    return {"errorMessage": message, "errorType": type(error).__name__, "stackTrace": []}


def _type_of(error: BaseException) -> str:
    return f"Runtime.{type(error).__name__}"


def _lines(headers: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1") + b"\r\n"


def _to_json(value: Any) -> bytes:
    return json.dumps(value).encode()
