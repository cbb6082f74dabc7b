"""A Lambda Runtime API that checks the protocol strictly, for what AWS's emulator does not have: streams, snapshots.

It stands for the documentation: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. AWS's own client passes
it, too (test_runtime_api_server.py). Whatever a runtime does that is not documented goes to `violations`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "/2018-06-01/runtime"
PAYLOAD_LIMIT = 6_291_556
STREAM_TYPE = "application/vnd.awslambda.http-integration-response"
ERROR_TYPE = "lambda-runtime-function-error-type"
ERROR_BODY = "lambda-runtime-function-error-body"
PATIENCE_SECONDS = 60


class Outcome:
    """What a runtime made of one event, or of its start."""

    def __init__(self) -> None:
        self.kind = ""  # "response", "stream", "error", "init/error", "restore/error"
        self.headers: dict[str, str] = {}
        self.body = b""
        self.chunks: list[tuple[float, bytes]] = []  # when each came, on the monotonic clock
        self.trailers: dict[str, str] = {}

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prelude(self) -> Any:
        return json.loads(self.body.split(bytes(8), 1)[0])

    @property
    def streamed_body(self) -> bytes:
        return self.body.split(bytes(8), 1)[1]


class RuntimeAPIServer:
    """`invoke` hands an event to the runtime and waits for what it makes of it."""

    def __init__(self, snapshot: bool) -> None:
        self.violations: list[str] = []
        self.snapshot_asked = threading.Event()  # the runtime is ready to be put into a snapshot
        self.restored = threading.Event()
        self.started: queue.Queue[Outcome] = queue.Queue()  # init/error and restore/error
        self.ready = threading.Event()  # the runtime has asked for an event
        self.under_way: Outcome | None = None  # a stream that has begun
        self.leave_after_bytes: int | None = None  # of a stream: then the connection is cut
        self.hangs_up = False  # close each connection once an event has left on it, and do not say so
        self._snapshot = snapshot
        self._events: queue.Queue[tuple[str, bytes, int]] = queue.Queue()
        self._current: str | None = None
        self._outcomes: queue.Queue[Outcome] = queue.Queue()
        self._closed = False
        self._http = _Server(("127.0.0.1", 0), _handler_for(self))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http.server_address[1]}"

    def invoke(self, event: Any, milliseconds: int = 30_000) -> Outcome:
        self.send(event, milliseconds)
        return self.outcome()

    def send(self, event: Any, milliseconds: int = 30_000) -> None:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        self._events.put((str(uuid.uuid4()), body, int(time.time() * 1000) + milliseconds))

    def outcome(self) -> Outcome:
        return self._outcomes.get(timeout=PATIENCE_SECONDS)

    # What follows is called by the connections' threads.

    def next_event(self) -> tuple[str, bytes, int] | None:
        if self._current is not None:
            self.violations.append("asked for the next event before it had answered the last")
        if self._snapshot and not self.restored.is_set():
            self.violations.append("asked for an event before restore/next")
        self.ready.set()
        while not self._closed:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=0.05)
                self._current = event[0]
                return event
        return None

    def take(self, outcome: Outcome, request_id: str | None) -> int:
        """The status with which a runtime's report is answered."""
        if request_id is None:
            if self.ready.is_set():
                self.violations.append(f"{outcome.kind} after the first event was asked for")
            self.started.put(outcome)
        elif request_id != self._current:
            self.violations.append(f"{outcome.kind} for {request_id}, which is not under way")
            return 400
        elif outcome.kind == "response" and len(outcome.body) > PAYLOAD_LIMIT:
            return 413  # the event is still to be answered
        else:
            self._current = None
            self._outcomes.put(outcome)
        if "error" in outcome.kind:
            self._check_error(outcome)
        return 202

    def wait_for_restore(self) -> bool:
        if not self._snapshot:
            self.violations.append("restore/next without a snapshot")
        if self.ready.is_set():
            self.violations.append("restore/next after the first event was asked for")
        self.snapshot_asked.set()
        while not self._closed and not self.restored.wait(0.05):
            pass
        return not self._closed

    def check_stream(self, outcome: Outcome) -> None:
        headers = outcome.headers
        if headers.get("lambda-runtime-function-response-mode") != "streaming":
            self.violations.append("a chunked response without Lambda-Runtime-Function-Response-Mode: streaming")
        if headers.get("content-type") == STREAM_TYPE:
            prelude, mark, _ = outcome.body.partition(bytes(8))
            if not mark or not isinstance(json.loads(prelude).get("statusCode"), int):
                self.violations.append(f"no prelude in {outcome.body[:200]!r}")
        announced = {name.strip().lower() for name in headers.get("trailer", "").split(",")}
        if not announced >= outcome.trailers.keys():
            self.violations.append(f"trailers that were not announced: {outcome.trailers.keys() - announced}")
        if ERROR_BODY in outcome.trailers:
            json.loads(base64.b64decode(outcome.trailers[ERROR_BODY], validate=True))

    def _check_error(self, outcome: Outcome) -> None:
        if not {"errorMessage", "errorType", "stackTrace"} <= outcome.json().keys():
            self.violations.append(f"{outcome.kind} with {outcome.body!r}")

    @contextlib.contextmanager
    def running(self) -> Iterator[RuntimeAPIServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._closed = True
            self._http.shutdown()
            thread.join()
            self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # a function that was killed leaves in the middle
            raise error or AssertionError


def _handler_for(api: RuntimeAPIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        is_from_before_the_snapshot = False  # the connection, which leads nowhere in a copy

        def do_GET(self) -> None:
            self._check_connection()
            if self.path == f"{VERSION}/invocation/next":
                event = api.next_event()
                if event is None:
                    self.close_connection = True
                    return
                request_id, body, deadline = event
                self._answer(
                    200,
                    body,
                    {
                        "Content-Type": "application/json",
                        "Lambda-Runtime-Aws-Request-Id": request_id,
                        "Lambda-Runtime-Deadline-Ms": str(deadline),
                        "Lambda-Runtime-Trace-Id": f"Root=1-{request_id}",
                        "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:123456789012:function:f",
                    },
                )
                self.close_connection = api.hangs_up
            elif self.path == f"{VERSION}/restore/next":
                self.is_from_before_the_snapshot = True
                if api.wait_for_restore():
                    self._answer(200)
            else:
                self._unknown()

        def do_POST(self) -> None:
            self._check_connection()
            outcome = Outcome()
            outcome.headers = {name.lower(): value for name, value in self.headers.items()}
            call = re.fullmatch(rf"{VERSION}/(?:invocation/([^/]+)/(response|error)|(init|restore)/error)", self.path)
            if call is None:
                self._unknown()
                return
            outcome.kind = call[2] or f"{call[3]}/error"
            if self.headers.get("Transfer-Encoding") == "chunked":
                if not self._read_chunks(outcome):
                    api.take(Outcome(), call[1])
                    self.close_connection = True
                    return
                if "lambda-runtime-function-response-mode" in outcome.headers:
                    outcome.kind = "stream"
                    api.check_stream(outcome)
            else:
                outcome.body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(api.take(outcome, call[1]), b'{"status":"OK"}')

        def _read_chunks(self, outcome: Outcome) -> bool:
            """False if somebody left before the end."""
            api.under_way = outcome
            while size := int(self.rfile.readline() or b"-1", 16):
                if size < 0:
                    return False  # the runtime was killed
                chunk = self.rfile.read(size)
                outcome.chunks.append((time.monotonic(), chunk))
                outcome.body += chunk
                if self.rfile.readline() != b"\r\n":
                    api.violations.append("a chunk without an end")
                if api.leave_after_bytes is not None and len(outcome.body) >= api.leave_after_bytes:
                    return False
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                outcome.trailers[name.lower()] = value.strip()
            return True

        def _check_connection(self) -> None:
            if self.is_from_before_the_snapshot:
                api.violations.append(f"{self.command} {self.path} on a connection from before the snapshot")

        def _unknown(self) -> None:
            api.violations.append(f"{self.command} {self.path}")
            self._answer(404)

        def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # the test had what it wanted, and ended the function
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
