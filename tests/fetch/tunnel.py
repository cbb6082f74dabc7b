"""A loopback proxy that takes CONNECT, and asks for an account if it is given one."""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple


class Tunnels(NamedTuple):
    port: int
    asked: list[str]  # what each CONNECT named


@contextlib.contextmanager
def tunnels(account: str | None = None) -> Iterator[Tunnels]:
    asked: list[str] = []
    closing = threading.Event()
    expected = account and f"Basic {base64.b64encode(account.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            if self.headers["Proxy-Authorization"] != expected:
                self.send_error(407)
                return
            host, _, port = self.path.partition(":")
            with socket.create_connection((host, int(port))) as far:
                self.send_response(200)
                self.end_headers()
                self._carry(far)

        def _carry(self, far: socket.socket) -> None:
            others = {self.connection: far, far: self.connection}
            with selectors.DefaultSelector() as selector:
                for side in others:
                    selector.register(side, selectors.EVENT_READ)
                while not closing.is_set():
                    for key, _ in selector.select(0.1):
                        assert isinstance(key.fileobj, socket.socket)
                        with contextlib.suppress(OSError):
                            if data := key.fileobj.recv(65536):
                                others[key.fileobj].sendall(data)
                                continue
                        return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Tunnels(server.server_address[1], asked)
        closing.set()
        server.shutdown()
        thread.join()
