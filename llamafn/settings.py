"""Every environment variable that llamafn reads: name, default, unit, range. Nothing else reads them.

`docs/configuration.md` is generated from `VARIABLES`.
"""

from __future__ import annotations

import json
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
    secret: bool = False  # its value is never printed; its parser returns a `Secret`

    @property
    def field(self) -> str:
        return self.name.lower()

    def quote(self, text: str) -> str:
        """The variable with its value, for an error message."""
        return f"{self.name}={'<secret>' if self.secret else repr(text)}"


class Secret(str):
    """A text that does not show itself where settings are printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


def secret(text: str) -> Secret:
    if not (text.isascii() and text.isprintable()):  # an HTTP client would quote it in its error
        raise ValueError
    return Secret(text)


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
        text.encode()  # bytes of the environment that are not UTF-8 have become halves of surrogate pairs
        return text
    with open(text[1:], encoding="utf-8") as file:
        return file.read()


def schema_or_file(text: str) -> dict[str, Any]:
    """A JSON object, or the path of one, with or without `@` in front."""
    if not text.startswith("{"):
        text = text_or_file("@" + text.removeprefix("@"))
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError
    return schema


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def keys(text: str) -> tuple[Secret, ...]:
    found = words(text_or_file(text).replace("\n", ","))
    if not found or not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise ValueError
    return tuple(map(Secret, found))


def model_uri(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and (scheme not in ("hf", "s3", "https", "http", "file", "package") or not rest):
        raise ValueError
    return text


def s3_prefix(text: str) -> str:
    bucket = text.removeprefix("s3://").partition("/")[0]
    if not text.startswith("s3://") or not bucket:
        raise ValueError
    return text.rstrip("/")


def digests(text: str) -> tuple[str, ...]:
    found = words(text.lower())
    if not all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in found):
        raise ValueError
    return found


def http_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest:
        raise ValueError
    return text.rstrip("/")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


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
    Variable(
        "MODEL_SHA256",
        digests,
        (),
        "64 hexadecimal digits; for a split model one for each part, with commas between them",
        "The model's SHA-256. A file with another one is not used.",
        "what the source says, if it says one",
    ),
    Variable(
        "MODEL_IN_MEMORY",
        switch,
        None,
        "`1` or `0`",
        "Keep a fetched model in memory instead of a file: for disks that are too small, and for snapshots of memory.",
        "`0`; `1` under Lambda's SnapStart",
    ),
    Variable(
        "FETCH_CONNECTIONS", integer(1, 64), 8, "1 to 64 connections", "Connections that fetch the model side by side."
    ),
    Variable(
        "FETCH_STALL_SECONDS",
        number(0.1, 600),
        10.0,
        "0.1 to 600 seconds",
        "A connection that brings no byte for so long is given up, and its part asked for again.",
    ),
    Variable(
        "FETCH_DEADLINE_SECONDS",
        number(0.1, 86_400),
        900.0,
        "0.1 to 86,400 seconds",
        "Fetching ends so long after the last request that waited for it. What has arrived is kept for the next try.",
    ),
    Variable(
        "ALLOW_HTTP",
        switch,
        False,
        "`1` or `0`",
        "Allow `http://` to hosts other than this one. Anybody on the way can then read and change what is fetched.",
        "`0`",
    ),
    Variable(
        "HF_ENDPOINT", http_url, "https://huggingface.co", "an `https://` address", "The Hugging Face hub or a mirror."
    ),
    Variable(
        "HF_TOKEN",
        secret,
        None,
        "a token, in ASCII",
        "For private and gated models on Hugging Face.",
        "none",
        secret=True,
    ),
    Variable(
        "AWS_ENDPOINT_URL_S3",
        http_url,
        None,
        "an `https://` address",
        "Where S3 is, if it is not Amazon's: R2, MinIO, B2. `S3_ENDPOINT_URL` is read as well.",
        "Amazon's, by region",
    ),
    Variable(
        "S3_ENDPOINT_URL", http_url, None, "an `https://` address", "Another name of `AWS_ENDPOINT_URL_S3`.", "none"
    ),
    Variable(
        "S3_ADDRESSING_STYLE",
        one_of("auto", "path", "virtual"),
        "auto",
        "`auto`, `path` or `virtual`",
        "Where the bucket's name goes. `auto`: in the host for Amazon's own S3, in the path elsewhere.",
    ),
    Variable("S3_ANONYMOUS", switch, False, "`1` or `0`", "Read a public bucket without credentials.", "`0`"),
    Variable("AWS_REGION", str, None, "a region's name", "The bucket's region. AWS Lambda sets it.", "`us-east-1`"),
    Variable("AWS_DEFAULT_REGION", str, None, "a region's name", "Used where `AWS_REGION` is not set.", "none"),
    Variable(
        "AWS_ACCESS_KEY_ID",
        str,
        None,
        "an access key",
        "Credentials for S3. AWS Lambda sets them. Without them botocore looks in all the usual places.",
        "none",
    ),
    Variable(
        "AWS_SECRET_ACCESS_KEY", secret, None, "a key, in ASCII", "Belongs to `AWS_ACCESS_KEY_ID`.", "none", secret=True
    ),
    Variable(
        "AWS_SESSION_TOKEN", secret, None, "a token, in ASCII", "Belongs to `AWS_ACCESS_KEY_ID`.", "none", secret=True
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
        "SNAPSHOT_URI",
        s3_prefix,
        None,
        "`s3://bucket/prefix`",
        "Where instances share their prompt snapshots: a new one finds what another one read. The S3 settings above "
        "hold for it too. Needs `s3:GetObject` and `s3:PutObject` on `prefix/*`, nothing else. Whoever can write there "
        "can change the answers.",
        "none: each instance keeps its own",
    ),
    Variable(
        "CHAT_SCHEMA",
        schema_or_file,
        None,
        "a JSON Schema (an object), or a path",
        "The schema of a `/chat` request that brings none: every answer then parses and validates.",
        "none",
    ),
    Variable(
        "REQUEST_TIMEOUT_SECONDS",
        number(0.1, 3600),
        45.0,
        "0.1 to 3,600 seconds",
        "A request's time, fetching and loading included. A running answer ends there with what it has.",
    ),
    Variable(
        "CLOUD_RUN_TIMEOUT_SECONDS",
        integer(0, 3600),
        0,
        "0 to 3,600 seconds",
        "Where it is less than `REQUEST_TIMEOUT_SECONDS`, it counts. functions-framework ends requests after it, too.",
        "none",
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
        "API_KEYS",
        keys,
        (),
        "keys of printable ASCII without spaces, with commas between them; or `@path`, one a line",
        "One of these must come with each request, but for `/health` and probes.",
        "none: everybody may ask",
        secret=True,
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
        "Load the model before the first request, wherever that is safe: not under functions-framework, which forks.",
        "`0`",
    ),
    Variable(
        "METRICS",
        switch,
        False,
        "`1` or `0`",
        "Metrics: at `/metrics` if prometheus_client is installed; on Lambda in the log, for CloudWatch.",
        "`0`",
    ),
    Variable(
        "LOG_PROMPTS",
        switch,
        False,
        "`1` or `0`",
        "Put what was asked into the log, to find a fault. Never the keys.",
        "`0`",
    ),
    Variable(
        "GOOGLE_CLOUD_PROJECT",
        str,
        None,
        "a project's name",
        "Lets Cloud Logging show the lines of one request together.",
        "none",
    ),
    Variable(
        "AWS_LAMBDA_FUNCTION_NAME",
        str,
        None,
        "a name",
        "The function that CloudWatch's metrics are of. Lambda sets it.",
        "none",
    ),
    Variable(
        "PLAYGROUND",
        switch,
        False,
        "`1` or `0`",
        "A page to try the model at `/`; open to everybody, while what it asks needs a key.",
        "`0`; `./build serve` sets it",
    ),
    Variable(
        "LAMBDA_STREAM",
        switch,
        False,
        "`1` or `0`",
        "The Function URL's invoke mode is `RESPONSE_STREAM`, and the function runs under `lambda-wrapper`.",
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
    model_sha256: tuple[str, ...]
    model_in_memory: bool
    fetch_connections: int
    fetch_stall_seconds: float
    fetch_deadline_seconds: float
    allow_http: bool
    hf_endpoint: str
    hf_token: str | None
    aws_endpoint_url_s3: str | None
    s3_endpoint_url: str | None
    s3_addressing_style: str
    s3_anonymous: bool
    aws_region: str | None
    aws_default_region: str | None
    aws_access_key_id: str | None
    aws_secret_access_key: str | None
    aws_session_token: str | None
    n_ctx: int
    n_threads: int
    parallel: int
    default_system: str | None
    chat_schema: dict[str, Any] | None
    snapshot_dir: str | None
    snapshot_uri: str | None
    request_timeout_seconds: float  # the lesser of both
    cloud_run_timeout_seconds: int
    deadline_margin_ms: int
    max_queue: int
    max_body_bytes: int
    api_keys: tuple[Secret, ...]
    cors_origins: tuple[str, ...]
    preload: bool
    metrics: bool
    log_prompts: bool
    google_cloud_project: str | None
    aws_lambda_function_name: str | None
    playground: bool
    lambda_stream: bool
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
                problems.append(f"{variable.quote(text)}: cannot read the file: {error.strerror}")
            except ValueError:
                problems.append(f"{variable.quote(text)}: expected {variable.rule.replace('`', '')}")
        timeout, margin = values.get("request_timeout_seconds"), values.get("deadline_margin_ms")
        if timeout is not None and values.get("cloud_run_timeout_seconds"):
            timeout = values["request_timeout_seconds"] = min(timeout, values["cloud_run_timeout_seconds"])
        if timeout is not None and margin is not None and margin >= timeout * 1000:
            problems.append(
                f"DEADLINE_MARGIN_MS={margin}: expected less than the time of a request, which is {timeout:g} s"
            )
        if problems:
            raise SettingsError(
                "These environment variables cannot be used:\n  " + "\n  ".join(problems),
                hint="docs/configuration.md lists every variable with its range.",
            )
        if values["local_model_path"] is None:
            values["local_model_path"] = f"{MODEL_DIRECTORY}/{file_name(values['model'])}"
        if values["model_in_memory"] is None:
            values["model_in_memory"] = environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
        if values["n_threads"] is None:
            values["n_threads"] = usable_cpus(environ)
        return cls(**values)


def shown(uri: str) -> str:
    """A model's URI without what may be a secret: user, password and query, which signs an address."""
    scheme, separator, rest = uri.partition("://")
    if scheme not in ("http", "https") or not separator:
        return uri
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def file_name(uri: str) -> str:
    """The last part of a model's URI, without revision or query: `model.gguf` of `hf://o/r/model.gguf@main`."""
    scheme, _, _ = uri.partition("://")
    # A revision may hold slashes: `model.gguf@refs/pr/1`.
    end_mark = {"http": "?", "https": "?", "hf": "@"}.get(scheme)
    path = uri.partition(end_mark)[0] if end_mark else uri
    return path.rstrip("/").rpartition("/")[2]
