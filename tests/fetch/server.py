"""A loopback web server that serves and takes objects, and does wrong exactly what a test asks for."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
import zlib
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import NamedTuple

MODIFIED = 1_700_000_000


class Asked(NamedTuple):
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    number: int  # 1 for the first

    @property
    def bounds(self) -> tuple[int, int] | None:
        """First and last byte of the range."""
        value = self.headers.get("range")
        if value is None:
            return None
        first, last = value.removeprefix("bytes=").split("-")
        return int(first), int(last)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut: int | None = None  # send so many bytes of the body...
    then: str = "close"  # ... and "close", "reset" or "stall"
    rate: float | None = None  # bytes per second


Fault = Callable[[Asked], Answer | None]


class ScriptedServer:
    """Serves `objects` by path. Each of `faults` is asked first and may answer instead; the first answer counts."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.rate: float | None = None
        self.after_bytes: tuple[int, Callable[[], None]] | None = None  # call once so many bytes of bodies were sent
        self._lock = threading.Lock()
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._serve(self)

            do_HEAD = do_PUT = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = False
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients go away in many ways here

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if tls is not None:
            # Each connection's own thread shakes hands, at its first read.
            listening = self._server.socket
            self._server.socket = tls.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
            self.url = f"https://127.0.0.1:{self.port}"
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def put(self, path: str, body: bytes) -> str:
        """Serve an object; its address."""
        self.objects[path] = body
        return self.url + path

    def ranges_asked(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.bounds is not None]

    def right_answer(self, asked: Asked) -> Answer:
        body = self.objects.get(asked.path.partition("?")[0])
        if body is None:
            return Answer(404, {"Content-Length": "0"})
        etag = f'"{zlib.crc32(body):x}"'
        headers = {"ETag": etag, "Last-Modified": formatdate(MODIFIED, usegmt=True), "Accept-Ranges": "bytes"}
        if asked.headers.get("if-match", etag) != etag:
            return Answer(412, {"Content-Length": "0"})
        bounds = asked.bounds
        if bounds is None or asked.headers.get("if-range", etag) != etag:
            return Answer(200, headers, body)
        first, last = bounds
        if first >= len(body):
            return Answer(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
        last = min(last, len(body) - 1)
        return Answer(206, headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}, body[first : last + 1])

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        connection = handler.connection
        with self._lock:
            if connection not in self._connections:
                self._connections.append(connection)
            asked = Asked(
                handler.command,
                handler.path,
                {name.lower(): value for name, value in handler.headers.items()},
                len(self.asked) + 1,
            )
            self.asked.append(asked)
            answer = None
            for fault in self.faults:
                answer = fault(asked)
                if answer is not None:
                    break
        if asked.method == "PUT":
            if answer is None:
                self.objects[asked.path] = handler.rfile.read(int(asked.headers["content-length"]))
                answer = Answer(200, {})
            else:
                handler.close_connection = True  # refused before its body was read
        answer = answer or self.right_answer(asked)
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        handler.send_response(answer.status)
        for name, value in headers.items():
            if value != "":
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        self._send(handler, body, answer.rate or self.rate)
        if answer.cut is None and headers["Content-Length"] != "":
            return
        handler.close_connection = True
        if answer.then == "stall":
            self._closing.wait()
        elif answer.then == "reset":
            # With no time to linger, close sends RST.
            handler.wfile.flush()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, rate: float | None) -> None:
        if rate is None and self.after_bytes is None:
            handler.wfile.write(body)
            return
        step = max(1, int(rate / 50)) if rate else 10_000
        for start in range(0, len(body), step):
            handler.wfile.write(body[start : start + step])
            self._count(len(body[start : start + step]))
            if rate and self._closing.wait(1 / 50):
                return

    def _count(self, sent: int) -> None:
        with self._lock:
            if self.after_bytes is None:
                return
            left, call = self.after_bytes
            self.after_bytes = (left - sent, call) if left > sent else None
            if left > sent:
                return
        call()


def once(fault: Fault) -> Fault:
    """Only the first time it has an answer."""
    left = [1]

    def first(asked: Asked) -> Answer | None:
        answer = fault(asked) if left[0] else None
        left[0] -= answer is not None
        return answer

    return first
