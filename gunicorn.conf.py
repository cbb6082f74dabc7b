"""gunicorn's settings; it reads this file by itself: `gunicorn handler:app`.

One worker, so that the model is in memory once, and threads, so that /health answers while others wait.
"""

import os
import signal
import socket
import struct
import sys
from typing import Any

import model_loader
from llamafn import heap
from llamafn.errors import HTTPError, SettingsError
from llamafn.settings import Settings
from llamafn.timeline import COLD_START

try:
    _settings = Settings.from_env()
except SettingsError as error:
    sys.exit(f"{error.message}\n{error.hint}")

bind = f"{_settings.host}:{_settings.port}"
workers = 1
worker_class = "gthread"
threads = _settings.server_threads
# A worker is replaced after so many requests; what it has begun, it finishes. The socket stays open meanwhile.
max_requests = 200
graceful_timeout = int(_settings.request_timeout_seconds) + 5
timeout = 45
keepalive = 5
# gunicorn's heartbeat would stall on a slow disk. Leapcell's /dev/shm is read-only, and then its /tmp is memory.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
preload_app = _settings.preload
# A client that takes nothing for so long has left, and must not keep the turn of its answer.
_SEND_LIMIT = struct.pack("ll", 10, 0)  # a timeval: seconds and microseconds
# Its control socket would be in $HOME, which serverless platforms do not let us write to.
control_socket_disable = True


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def when_ready(server: Any) -> None:
    """In the master, before any worker: map the weights once, for every worker that will follow."""
    for listener in server.LISTENERS:  # whose connections inherit it: socket(7)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_LIMIT)
    if not _settings.api_keys and not _is_loopback(_settings.host):
        server.log.warning(
            "Listening on %s without API_KEYS: whoever reaches this address may use the model.", _settings.host
        )
    if _settings.preload:
        try:
            model_loader.preload(_settings)
        except HTTPError as error:
            # The worker tries again, and /health says what is wrong.
            server.log.error("The model cannot be loaded: %s %s", error.message, error.hint or "")


def post_fork(server: Any, worker: Any) -> None:
    heap.share()
    if worker.age > 1:
        COLD_START.restart()  # a later worker does not start with the process


def post_worker_init(worker: Any) -> None:
    """In the worker, before its first request."""
    # Ctrl-C reaches every process of the terminal, and the master tells the worker, too. gunicorn's handlers take a
    # lock that they cannot take twice: the worker would hang until it is killed. The master's word is enough.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from llamafn import app

    def end(signal_number: int, frame: Any) -> None:
        app.drain()
        worker.handle_exit(signal_number, frame)

    # gunicorn goes on answering on connections that are open; what would begin now might not be finished in time.
    signal.signal(signal.SIGTERM, end)
    if _settings.preload:
        model_loader.start_loading(_settings)
