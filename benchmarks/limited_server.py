"""A loopback server with the limits of an object store: so much for each connection, so much in all.

It speaks enough of a plain web server, of the Hugging Face hub and of S3 for the clients in `benchmarks.fetch_clients`.
`python -m benchmarks.limited_server FILE` prints its port. GET /-/first tells when the first request came, on the
monotonic clock, and forgets it.
"""

from __future__ import annotations

import argparse
import os
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

from llamafn.fetch.local import file_digest

CHUNK = 256 << 10


class Limit:
    """Bytes per second, shared by whoever asks it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def book(self, count: int) -> float:
        """The moment at which so many bytes will have been let through."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            return self._free_at


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, connection_rate: float, total_rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.file).st_size
        self.digest = file_digest(path, lambda: None)
        self.connection_rate = connection_rate
        self.total = Limit(total_rate)
        self.first: float | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self._limit = Limit(self.server.connection_rate)

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        if self.path == "/-/first":
            body = str(self.server.first).encode()
            self.server.first = None
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        start, end = self._begin()
        self.wfile.flush()
        while start < end:
            count = min(CHUNK, end - start)
            moment = max(self._limit.book(count), self.server.total.book(count))
            delay = moment - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            while count:
                sent = os.sendfile(self.connection.fileno(), self.server.file, start, count)
                start, count = start + sent, count - sent

    def _begin(self) -> tuple[int, int]:
        """Send the head of the answer; the bytes that follow."""
        moment = time.monotonic()
        self.server.first = self.server.first or moment
        size = self.server.size
        start, end = 0, size
        value = self.headers.get("Range")
        self.send_response(206 if value else 200)
        if value:
            first, _, last = value.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or size) + 1, size)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        for name, text in {
            "Content-Length": str(end - start),
            "Accept-Ranges": "bytes",
            "ETag": f'"{self.server.digest}"',
            "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT",
            "X-Repo-Commit": "0" * 40,
            "X-Linked-Etag": f'"{self.server.digest}"',
            "X-Linked-Size": str(size),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        return start, end

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--connection-rate", type=float, required=True)
    parser.add_argument("--total-rate", type=float, required=True)
    arguments = parser.parse_args()
    server = Server(arguments.file, arguments.connection_rate, arguments.total_rate)
    print(server.server_address[1], flush=True)
    server.serve_forever()
