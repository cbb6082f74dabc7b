"""The servers that are measured: ours behind each door, and its peers. How each is started and asked is said here only.

Every one gets the same model, context, threads, prompt and number of tokens, on a free port of 127.0.0.1. What could
not be made the same is in `note`.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import llama_server, peers
from benchmarks.workloads import MAX_TOKENS, N_CTX, THREADS, Workload

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 120.0


class Server(NamedTuple):
    """How one is started and asked. `command` takes the model and the port."""

    name: str
    command: Callable[[Path, int], list[str]]
    path: str
    note: str
    environment: Callable[[Path, int], dict[str, str]] = lambda model, port: {}

    @property
    def is_ours(self) -> bool:
        return self.path == "/chat"

    def body(self, workload: Workload, max_tokens: int = MAX_TOKENS, *, stream: bool = True) -> bytes:
        body: dict[str, Any]
        if self.is_ours:
            body = {"system": workload.system, "context": workload.user}
        else:
            messages = [{"role": "system", "content": workload.system}, {"role": "user", "content": workload.user}]
            body = {"messages": messages, "repeat_penalty": 1.0}  # llama_cpp.server's default would change the text
        body |= {"max_tokens": max_tokens, "temperature": 0, "stream": stream}
        return json.dumps(body).encode()


def _gunicorn(model: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "--bind", f"127.0.0.1:{port}", "handler:app"]


def _functions_framework(model: Path, port: int) -> list[str]:
    start = "from functions_framework._cli import _cli; _cli()"
    options = ["--target", "http", "--source", "handler.py", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-c", start, *options]


def _our_environment(model: Path, port: int, n_ctx: int = N_CTX, threads: int = THREADS) -> dict[str, str]:
    return {
        "MODEL": str(model),
        "N_CTX": str(n_ctx),
        "N_THREADS": str(threads),
        "PORT": str(port),
        "REQUEST_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
    }


GUNICORN = Server(
    "ours, gunicorn",
    _gunicorn,
    "/chat",
    "handler:app, one worker, no preload",
    _our_environment,
)
FUNCTIONS_FRAMEWORK = Server(
    "ours, functions-framework",
    _functions_framework,
    "/chat",
    "handler.py, target http",
    _our_environment,
)


def _flask(model: Path, port: int, n_ctx: int = N_CTX, threads: int = THREADS) -> list[str]:
    options = ["--workers", "1", "--threads", "4", "--timeout", "120", "--bind", f"127.0.0.1:{port}"]
    application = f"benchmarks.peers.flask_llama:create_app({str(model)!r}, {n_ctx}, {threads})"
    return [str(peers.python()), "-m", "gunicorn", *options, application]


FLASK = Server(
    "Flask + gunicorn + Llama",
    _flask,
    "/v1/chat/completions",
    "benchmarks/peers/flask_llama.py: the contract's service, made to stream; not repacked, loads as the worker starts",
)


def sized(server: Server, n_ctx: int, threads: int, under: Sequence[str]) -> Server:
    """Ours or the Flask service with another context and number of threads, started `under` another command."""
    make = functools.partial(_flask, n_ctx=n_ctx, threads=threads) if server is FLASK else server.command
    environment = functools.partial(_our_environment, n_ctx=n_ctx, threads=threads)
    return server._replace(
        command=lambda model, port: [*under, *make(model, port)],
        environment=environment if server.is_ours else server.environment,
    )


def _llama_cpp_server(model: Path, port: int) -> list[str]:
    options = ["--model", str(model), "--n_ctx", str(N_CTX), "--n_threads", str(THREADS), "--n_threads_batch"]
    return [
        str(peers.python()),
        "-m",
        "benchmarks.peers.llama_cpp_server",
        *options,
        str(THREADS),
        "--port",
        str(port),
        "--host=127.0.0.1",
    ]


LLAMA_CPP_SERVER = Server(
    "llama_cpp.server",
    _llama_cpp_server,
    "/v1/chat/completions",
    "llama-cpp-python's own FastAPI server, not repacked",
)


def _llama_server(name: str, binary: Path, flags: tuple[str, ...]) -> Server:
    def command(model: Path, port: int) -> list[str]:
        options = ["--ctx-size", str(N_CTX), "--threads", str(THREADS), "--parallel", "1", "--port", str(port)]
        return [str(binary), "--model", str(model), "--host", "127.0.0.1", *options, *flags]

    return Server(name, command, "/v1/chat/completions", f"{binary.name}, {' '.join(flags) or 'as it comes'}")


def available() -> list[Server]:
    """Every server that can be started here, ours first."""
    servers = [GUNICORN, FUNCTIONS_FRAMEWORK] if (ROOT / "handler.py").is_file() else []
    binary = llama_server.find("llama-server")
    if binary is None:
        print("No llama-server: `./build llama-server` builds one, or LLAMA_SERVER names one.")
    else:
        servers.append(_llama_server("llama-server", binary, (*llama_server.BEST_FLAGS, "--no-repack")))
        servers.append(_llama_server("llama-server, repacked", binary, llama_server.BEST_FLAGS))
        servers.append(_llama_server("llama-server, its defaults", binary, ()))
    return [*servers, FLASK, LLAMA_CPP_SERVER]


class Running:
    """A server under way; `with` ends it and everything it started.

    What it keeps for its next start goes to `snapshots`. Without that it is thrown away, so that no run profits from
    the one before.
    """

    def __init__(self, server: Server, model: Path, snapshots: Path | None = None) -> None:
        self.server = server
        self.port = _free_port()
        self._scratch = tempfile.TemporaryDirectory(prefix="llamafn-bench-")
        environment = clean_environment() | server.environment(model, self.port)
        environment["SNAPSHOT_DIR"] = str(snapshots or self._scratch.name)
        command = server.command(model, self.port)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        except ProcessLookupError:
            self.process.wait()
        self._log.close()
        self._scratch.cleanup()

    def post(self, body: bytes) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The first answer that is not "not ready yet": refused connections and 503 are tried again."""
        until = self.started + PATIENCE_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended by itself with {self.process.returncode}:\n{self.log()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
            try:
                connection.request("POST", self.server.path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
            except (ConnectionError, http.client.HTTPException):
                connection.close()
            else:
                if response.status == 200:
                    return connection, response
                said = response.read()
                connection.close()
                if response.status != 503:
                    raise RuntimeError(f"it answered {response.status}: {said[:500]!r}")
            # Short beside what is measured, long enough not to take the CPU from what is being waited for.
            time.sleep(0.001)
        raise RuntimeError(f"it did not answer in {PATIENCE_SECONDS:.0f} s:\n{self.log()}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")


class Answer(NamedTuple):
    """`first` and `last`: seconds from the process's start to the first and last piece of text."""

    first: float
    last: float
    pieces: int
    text: str


def answer(running: Running, body: bytes) -> Answer:
    """Ask, and read the stream to its end."""
    connection, response = running.post(body)
    first = last = 0.0
    texts = []
    with closing(connection):
        for piece in pieces(iter(response.readline, b"")):
            last = time.monotonic() - running.started
            first = first or last
            texts.append(piece)
    if not texts:
        raise RuntimeError("it answered without any text")
    return Answer(first, last, len(texts), "".join(texts))


def pieces(lines: Iterator[bytes]) -> Iterator[str]:
    """The text in a stream of server-sent events, OpenAI's (`choices[0].delta.content`) or `/chat`'s (`content`)."""
    for line in lines:
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        event = json.loads(line[5:])
        choices = event.get("choices")
        text = choices[0].get("delta", {}).get("content") if choices else event.get("content")
        if text:
            yield text


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Ours without what would spoil a measurement or change a server."""
    spoilers = ("PYTHONDONTWRITEBYTECODE", "MODEL", "N_CTX", "N_THREADS", "PRELOAD", "SNAPSHOT_DIR", "SNAPSHOT_URI")
    return {name: value for name, value in environ.items() if name not in spoilers}


BARE = "bare script"


def bare(
    model: Path,
    prompt: Path,
    *options: str,
    python: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Answer, dict[str, float]]:
    """Run peers/bare.py, the floor; also its own moments, in seconds from the process's start.

    `options` are bare.py's, `python` the interpreter's, `environment` is added to ours.
    """
    script = str(ROOT / "benchmarks" / "peers" / "bare.py")
    command = [sys.executable, *python, script, str(model), str(prompt), *options]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment() | dict(environment)) as process:
        assert process.stdout is not None
        first_piece = os.read(process.stdout.fileno(), 4096)
        first = time.monotonic() - started
        rest = process.stdout.read()
    if process.returncode != 0 or not first_piece:
        raise RuntimeError(f"bare.py ended with {process.returncode}")
    text, _, said = (first_piece + rest).decode(errors="replace").strip().rpartition("\n")
    values = {name: float(value) for name, _, value in (pair.partition("=") for pair in said.split())}
    moments = {name: value - started for name, value in values.items() if name != "prompt_tokens"}
    return Answer(first, moments["end"], MAX_TOKENS, text), moments | {"prompt_tokens": values["prompt_tokens"]}
