"""Every environment variable that llamafn reads: name, default, unit, range. Nothing else reads them.

`docs/configuration.md` is generated from `VARIABLES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from llamafn.cpu_quota import usable_cpus
from llamafn.errors import SettingsError

DEFAULT_MODEL = "hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf"
MODEL_DIRECTORY = "/tmp/models"  # the only place that serverless platforms let us write to

SNAPSHOT_DIRECTORY = "/tmp/llamafn"


class Variable(NamedTuple):
    """One environment variable. `parse` returns the value or raises ValueError with the rule that was broken."""

    name: str
    parse: Callable[[str], Any]
    default: Any  # None: worked out in `Settings.from_env`, or absent
    rule: str  # what is accepted, and its unit
    meaning: str
    default_said: str = ""  # how the documentation says a default that is not a constant

    @property
    def field(self) -> str:
        return self.name.lower()


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    return parse


def number(lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not lowest <= value <= highest:  # false for nan, too
            raise ValueError
        return value

    return parse


def switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError


def text_or_file(text: str) -> str:
    """`@path` reads a UTF-8 file: Lambda allows 4 KB of environment, Leapcell 3 KB."""
    if not text.startswith("@"):
        return text
    with open(text[1:], encoding="utf-8") as file:
        return file.read()


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def model_uri(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and (scheme not in ("hf", "s3", "https", "http", "file", "package") or not rest):
        raise ValueError
    return text


VARIABLES = (
    Variable(
        "MODEL",
        model_uri,
        DEFAULT_MODEL,
        "`hf://owner/repo/file.gguf@revision`, `s3://bucket/key`, `https://…`, `package://module/file.gguf`, "
        "`file://…` or a path",
        "The model, a GGUF file.",
    ),
    Variable(
        "LOCAL_MODEL_PATH",
        str,
        None,
        "a path",
        "Where a fetched model is kept. A good GGUF that is already there is used as it is.",
        f"`{MODEL_DIRECTORY}/<file name>`",
    ),
    Variable("N_CTX", integer(64, 1 << 20), 1024, "64 to 1,048,576 tokens", "Context: prompt and answer together."),
    Variable(
        "N_THREADS",
        integer(1, 512),
        None,
        "1 to 512 threads",
        "Threads that compute. More than the quota makes everything slower.",
        "the CPU quota",
    ),
    Variable(
        "PARALLEL",
        integer(1, 64),
        1,
        "1 to 64 answers",
        "Answers that are written side by side, each with a context of its own. The rest take turns.",
    ),
    Variable(
        "DEFAULT_SYSTEM",
        text_or_file,
        None,
        "a text, or `@path`",
        "The system prompt of a `/chat` request that brings none; read at `/warmup`.",
        "none",
    ),
    Variable(
        "SNAPSHOT_DIR",
        str,
        None,
        "a directory",
        "Where prompt snapshots are kept. Those that lie beside the model are read in any case.",
        f"beside the model, or `{SNAPSHOT_DIRECTORY}`",
    ),
    Variable(
        "REQUEST_TIMEOUT_SECONDS",
        number(0.1, 3600),
        45.0,
        "0.1 to 3,600 seconds",
        "A request's time, fetching and loading included. A running answer ends there with what it has.",
    ),
    Variable(
        "DEADLINE_MARGIN_MS",
        integer(0, 60_000),
        500,
        "0 to 60,000 milliseconds",
        "Kept back from the time limit, so that the answer still gets out.",
    ),
    Variable(
        "MAX_QUEUE",
        integer(0, 1024),
        16,
        "0 to 1,024 requests",
        "Requests that may wait for their turn; one more is answered 429.",
    ),
    Variable(
        "MAX_BODY_BYTES", integer(1024, 1 << 30), 1 << 20, "1,024 to 1,073,741,824 bytes", "Size of a request's body."
    ),
    Variable(
        "CORS_ORIGINS",
        words,
        (),
        "origins with commas between them, or `*`",
        "Pages that may call from a browser.",
        "none",
    ),
    Variable(
        "PRELOAD",
        switch,
        False,
        "`1` or `0`",
        "Load the model before the first request, wherever that is safe.",
        "`0`",
    ),
    Variable("HOST", str, "127.0.0.1", "an address", "Where gunicorn listens; containers need `0.0.0.0`."),
    Variable(
        "PORT",
        integer(0, 65_535),
        8080,
        "0 to 65,535",
        "The port gunicorn listens on (`./build serve` uses 8001). 0 takes a free one.",
    ),
)


class Settings(NamedTuple):
    """The checked settings. Fields are the variables' names in lower case."""

    model: str
    local_model_path: str
    n_ctx: int
    n_threads: int
    parallel: int
    default_system: str | None
    snapshot_dir: str | None
    request_timeout_seconds: float
    deadline_margin_ms: int
    max_queue: int
    max_body_bytes: int
    cors_origins: tuple[str, ...]
    preload: bool
    host: str
    port: int

    @property
    def server_threads(self) -> int:
        """Threads of a server: all who may wait, all who are answered, and a few for /health and for 429."""
        return self.max_queue + self.parallel + 4

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check `environ`, by default the process's own; an empty variable counts as unset.

        Raises:
            SettingsError: one message that lists every bad variable.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems = []
        for variable in VARIABLES:
            text = environ.get(variable.name, "").strip()
            try:
                values[variable.field] = variable.parse(text) if text else variable.default
            except OSError as error:
                problems.append(f"{variable.name}={text!r}: cannot read the file: {error.strerror}")
            except ValueError:
                problems.append(f"{variable.name}={text!r}: expected {variable.rule.replace('`', '')}")
        timeout, margin = values.get("request_timeout_seconds"), values.get("deadline_margin_ms")
        if timeout is not None and margin is not None and margin >= timeout * 1000:
            problems.append(
                f"DEADLINE_MARGIN_MS={margin}: expected less than REQUEST_TIMEOUT_SECONDS, which is {timeout:g} s"
            )
        if problems:
            raise SettingsError(
                "These environment variables cannot be used:\n  " + "\n  ".join(problems),
                hint="docs/configuration.md lists every variable with its range.",
            )
        if values["local_model_path"] is None:
            values["local_model_path"] = f"{MODEL_DIRECTORY}/{file_name(values['model'])}"
        if values["n_threads"] is None:
            values["n_threads"] = usable_cpus(environ)
        return cls(**values)


def file_name(uri: str) -> str:
    """The last part of a model's URI, without revision or query: `model.gguf` of `hf://o/r/model.gguf@main`."""
    scheme, _, _ = uri.partition("://")
    path = uri.partition("?")[0] if scheme in ("http", "https") else uri
    name = path.rstrip("/").rpartition("/")[2]
    return name.partition("@")[0] if scheme == "hf" else name
