"""Lambda functions as processes: under AWS's client or our runtime loop, before a Runtime API or in AWS's emulator."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.lambda_emulator import emulator
from tests.platforms.runtime_api_server import RuntimeAPIServer
from tests.servers import PATIENCE_SECONDS, ROOT

# What runs a handler, whose name follows: AWS's client, and the wrapper, which Lambda gives the interpreter and that
# client's path. AWS's client takes the name as an argument; the wrapper's loop, like Lambda's own bootstrap, from
# `_HANDLER`, which the emulator sets to its last argument.
STOCK = (sys.executable, "-m", "awslambdaric")
WRAPPED = (str(ROOT / "llamafn/platforms/lambda-wrapper"), sys.executable, "/var/runtime/bootstrap.py")

URL_CONTEXT = {"http": {"method": "POST"}, "stage": "$default", "domainName": "abc.lambda-url.eu-west-1.on.aws"}


def url_event(path: str, body: Any = None, method: str = "POST") -> dict[str, Any]:
    """What a Function URL sends."""
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "requestContext": {**URL_CONTEXT, "http": {"method": method}},
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }


class Function:
    """A process that runs a handler, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def said(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def running(
    api: RuntimeAPIServer,
    directory: Path,
    command: tuple[str, ...] = WRAPPED,
    handler: str = "handler.handler",
    /,
    **environ: str,
) -> Iterator[Function]:
    """A function before `api`, until the end of the block; then the protocol must have been kept."""
    log = directory / f"function-{time.monotonic_ns()}.log"
    with api.running(), log.open("wb") as output:
        environment = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "LAMBDA_TASK_ROOT": str(ROOT),
            "_HANDLER": handler,
            "SNAPSHOT_DIR": str(directory),
            "N_THREADS": "1",  # two wait for each other on a busy machine
            **environ,
        }
        process = subprocess.Popen([*command, handler], cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            yield Function(process, log)
        finally:
            process.kill()
            process.wait()
    assert not api.violations, (api.violations, log.read_text())


class Emulator:
    """AWS's emulator with a function in it. One invocation at a time: it panics at two."""

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.log = log
        self._pid = pid
        self._port = port

    def function_pids(self) -> list[int]:
        """The processes that it has started and that still run."""
        tasks = Path(f"/proc/{self._pid}/task").glob("*/children")
        return [int(pid) for children in tasks for pid in children.read_text().split()]

    def invoke(self, event: Any) -> Any:
        """The function's payload. A function's error is one, too: an object with `errorType`."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)) as connection:
            connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event).encode())
            return json.loads(connection.getresponse().read())

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def emulated(
    directory: Path, command: tuple[str, ...] = STOCK, handler: str = "handler.handler", /, **environ: str
) -> Iterator[Emulator]:
    """AWS's emulator, until the end of the block. It starts the function at the first invocation."""
    log = directory / f"emulator-{time.monotonic_ns()}.log"
    ours, theirs = _free_ports(2)
    addresses = [
        f"--runtime-interface-emulator-address=127.0.0.1:{ours}",
        f"--runtime-api-address=127.0.0.1:{theirs}",
    ]
    environment = {
        **os.environ,
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "3538",
        "LAMBDA_TASK_ROOT": str(ROOT),
        "SNAPSHOT_DIR": str(directory),
        "N_THREADS": "1",
        **environ,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(emulator(os.environ)), *addresses, *command, handler],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_port(ours, process, log)
        yield Emulator(process.pid, ours, log)
    finally:
        process.send_signal(signal.SIGTERM)  # killed, it would leave the function's process behind
        try:
            process.wait(PATIENCE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: the emulator takes none that it could choose itself."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)
