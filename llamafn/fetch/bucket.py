"""A prefix in an S3 bucket, where instances share small objects: prompt snapshots.

What is kept there only saves time. So nothing here raises, and nobody waits for longer than he says: what cannot be had
is logged and done without. Importing this is cheap; an HTTP client is imported when the bucket is asked.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llamafn.errors import FetchFailed, LlamafnError
from llamafn.settings import Settings

if TYPE_CHECKING:
    from llamafn.fetch.connection import Connection, Reply
    from llamafn.fetch.sources.s3 import S3Bucket

log = logging.getLogger("llamafn")

# A bucket that lets nothing through for so long is given up.
STALL_SECONDS = 2.0
# After that, as after any failure, it is left alone for a while: most will fail like this one.
PAUSE_SECONDS = 60.0
# One piece of a body, sent within STALL_SECONDS or not at all.
PIECE_BYTES = 128 << 10


class Bucket:
    """`s3://bucket/prefix`, asked with the settings that the model's S3 has. Methods may be called from any thread."""

    def __init__(self, uri: str, settings: Settings) -> None:
        self._name, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._shown = uri
        self._settings = settings
        self._s3: S3Bucket | None = None
        self._paused_until = 0.0  # on the monotonic clock
        self._takes_objects = True

    def get(self, name: str, *, most_bytes: int, seconds: float) -> bytearray | None:
        """An object's bytes, as they are; None if it is not there, is larger, or is not had in so many seconds."""
        return self._within(seconds, "GET", lambda exchange: self._get(exchange, name, most_bytes))

    def put(self, name: str, data: bytes, *, seconds: float) -> None:
        """Store an object, if that can be done in so many seconds."""
        if self._takes_objects:
            self._within(seconds, "PUT", lambda exchange: self._put(exchange, name, data))

    def _get(self, exchange: _Exchange, name: str, most_bytes: int) -> bytearray | None:
        with self._send(exchange, "GET", name) as reply:
            if reply.status in (403, 404):
                log.info(
                    "%s/%s: S3 answered %d %s. Without s3:ListBucket a 403 may also say that it is not there.",
                    *(self._shown, name, reply.status, _code(reply)),
                )
                return None
            _check(reply)
            length = reply.length
            if length is None or length > most_bytes:
                log.warning(
                    "%s/%s is not fetched: it has %s bytes, not %d at most.", self._shown, name, length, most_bytes
                )
                return None
            data = bytearray(length)
            with memoryview(data) as buffer:
                position = 0
                while position < length:
                    count = reply.read_into(buffer[position:])
                    if not count:
                        raise FetchFailed(f"the answer ended after {position} of {length} bytes")
                    position += count
                    exchange.steps += 1
            return data

    def _put(self, exchange: _Exchange, name: str, data: bytes) -> None:
        with self._send(exchange, "PUT", name, data) as reply:
            if reply.status in (401, 403):
                # Perhaps on purpose: instances may read what one of them stored.
                self._takes_objects = False
                log.warning(
                    "%s/%s: S3 answered %d %s. This process stores nothing more there; it needs s3:PutObject on that "
                    "prefix.",
                    *(self._shown, name, reply.status, _code(reply)),
                )
                return
            _check(reply)
            log.info("Stored %s/%s, %.1f MB.", self._shown, name, len(data) / 1e6)

    def _send(self, exchange: _Exchange, method: str, name: str, data: bytes = b"") -> Reply:
        from llamafn.fetch.sources.s3 import S3Bucket

        bucket = self._s3 = self._s3 or S3Bucket(self._name, self._settings)
        connection = exchange.connect(allow_http=self._settings.allow_http)
        key = f"{self._prefix}/{name}" if self._prefix else name
        body = _Body(data, exchange) if method == "PUT" else None
        size = {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"} if body else {}
        digest = hashlib.sha256(data).hexdigest()
        url, headers = bucket.signed(method, key, body_digest=digest)
        reply = connection.send(method, url, headers | size, STALL_SECONDS, body)
        if bucket.adapts(reply):  # it is in another region
            connection.close()
            url, headers = bucket.signed(method, key, body_digest=digest)
            reply = connection.send(method, url, headers | size, STALL_SECONDS, body)
        exchange.steps += 1
        return reply

    def _within(self, seconds: float, method: str, work: Callable[[_Exchange], bytearray | None]) -> bytearray | None:
        if time.monotonic() < self._paused_until:
            return None
        exchange = _Exchange(work)
        exchange.start()
        exchange.wait(seconds)
        if exchange.failure is not None:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.warning(
                "%s: the %s failed: %s. It is left alone for %.0f s.",
                *(self._shown, method, exchange.failure, PAUSE_SECONDS),
            )
        return exchange.result


class _Exchange(threading.Thread):
    """A request in a thread of its own, which can be left behind at any moment.

    Sockets' timeouts do not bound it: a resolver has its own, and a host with eight addresses that do not answer takes
    eight of them to connect.
    """

    def __init__(self, work: Callable[[_Exchange], bytearray | None]) -> None:
        super().__init__(name="llamafn-bucket", daemon=True)
        self.steps = 0  # grows with every sign of life
        self.result: bytearray | None = None
        self.failure: str | None = None
        self._work = work
        self._connection: Connection | None = None
        self._left_behind = False

    def connect(self, *, allow_http: bool) -> Connection:
        from llamafn.fetch.connection import Connection

        self._connection = Connection(allow_http=allow_http)
        return self._connection

    def run(self) -> None:
        result: bytearray | None = None
        failure: str | None = None
        try:
            result = self._work(self)
        except LlamafnError as error:
            failure = error.message
        except OSError as error:
            failure = str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - the prompt can be read instead, whatever this is
            failure = type(error).__name__  # its text may quote a header
        finally:
            if self._connection is not None:
                self._connection.close()
        if not self._left_behind:
            self.result, self.failure = result, failure

    def wait(self, seconds: float) -> None:
        """Until it is over; give it up after so many seconds, or when it stalls."""
        until = time.monotonic() + seconds
        steps = -1
        while self.is_alive():
            left = until - time.monotonic()
            if left <= 0 or steps == self.steps:
                self._left_behind = True
                self.failure = (
                    f"nothing moved for {STALL_SECONDS:g} s" if left > 0 else f"{seconds:.1f} s were not enough"
                )
                if self._connection is not None:
                    self._connection.abort()
                return
            steps = self.steps
            self.join(min(STALL_SECONDS, left))


class _Body:
    """What is sent, in pieces; again from the start where it has to be sent again."""

    def __init__(self, data: bytes, exchange: _Exchange) -> None:
        self._data = data
        self._exchange = exchange

    def __iter__(self) -> Iterator[memoryview]:
        whole = memoryview(self._data)
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]
            self._exchange.steps += 1


def _check(reply: Reply) -> None:
    if reply.status != 200:
        raise FetchFailed(f"S3 answered {reply.status} {_code(reply)}".rstrip())


def _code(reply: Reply) -> str:
    from llamafn.fetch.sources.s3 import error_code

    return error_code(reply)
