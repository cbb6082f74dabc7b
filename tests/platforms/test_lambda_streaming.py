"""Answers that leave in pieces: our runtime loop, as a process of its own, before a strict Runtime API."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platforms.functions import WRAPPED, Function, running, url_event
from tests.platforms.runtime_api_server import ERROR_BODY, ERROR_TYPE, STREAM_TYPE, RuntimeAPIServer
from tests.servers import events_of

QUESTION = {"system": "Eres un asistente agrónomo.", "context": "¿Cuándo debo regar?", "max_tokens": 8}
STORY = {"context": "Write a very long story.", "max_tokens": 400}


@pytest.fixture(scope="module")
def streaming(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeAPIServer]:
    api = RuntimeAPIServer(snapshot=False)
    with running(api, tmp_path_factory.mktemp("streaming"), MODEL=model_path, LAMBDA_STREAM="1"):
        api.invoke({"warmup": True})
        yield api


def test_an_answer_leaves_in_pieces(streaming: RuntimeAPIServer) -> None:
    outcome = streaming.invoke(url_event("/chat", {**QUESTION, "stream": True}))
    assert outcome.kind == "stream"
    assert outcome.headers["content-type"] == STREAM_TYPE
    assert outcome.prelude["statusCode"] == 200
    assert outcome.prelude["headers"]["Content-Type"] == "text/event-stream; charset=utf-8"
    *pieces, summary = events_of(outcome.streamed_body)
    assert "".join(piece["content"] for piece in pieces)
    assert summary["finish_reason"] in ("stop", "length")
    # One chunk for each event, ping and for [DONE], each sent when it was made: decoding took time in between.
    assert len(outcome.chunks) == len(pieces) + outcome.streamed_body.count(b": ping") + 2
    spread = outcome.chunks[-1][0] - outcome.chunks[0][0]
    assert spread > summary["timings"]["decode_ms"] / 1000 / 2
    assert outcome.trailers == {}


def test_every_answer_to_a_function_url_has_the_prelude(streaming: RuntimeAPIServer) -> None:
    health = streaming.invoke(url_event("/health", method="GET"))
    assert health.kind == "stream"
    assert json.loads(health.streamed_body)["status"] == "ok"
    refused = streaming.invoke(url_event("/chat", {"max_tokens": 0, "stream": True}))
    assert refused.prelude["statusCode"] == 400
    assert "max_tokens: found 0" in refused.streamed_body.decode()


def test_all_else_is_whole(streaming: RuntimeAPIServer) -> None:
    event = url_event("/health", method="GET")
    event["requestContext"]["domainName"] = "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com"
    assert streaming.invoke(event).kind == "response"
    assert streaming.invoke({"warmup": True}).kind == "response"
    assert streaming.invoke({"context": "Hola", "max_tokens": 1}).kind == "response"
    assert streaming.invoke({"key1": "value1"}).kind == "error"


def test_the_deadline_ends_a_stream_that_nobody_reads_any_more(streaming: RuntimeAPIServer) -> None:
    """Lambda takes the rest of a stream whose client has left: only the time limit bounds it."""
    began = time.monotonic()
    outcome = streaming.invoke(url_event("/chat", {**STORY, "stream": True}), 3000)
    assert time.monotonic() - began < 5
    *_, summary = events_of(outcome.streamed_body)
    assert summary["finish_reason"] == "deadline"


def test_a_connection_that_breaks_frees_the_engine(streaming: RuntimeAPIServer) -> None:
    streaming.leave_after_bytes = 300
    streaming.send(url_event("/chat", {**STORY, "stream": True}))
    assert streaming.outcome().kind == ""
    streaming.leave_after_bytes = None
    answer = streaming.invoke(url_event("/chat", {**QUESTION, "max_tokens": 1}))
    assert json.loads(answer.streamed_body)["timings"]["queue_ms"] < 1000


@pytest.fixture
def handlers(api: RuntimeAPIServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Function]:
    """Our loop with one of tests/platforms/handlers.py."""
    with running(api, tmp_path, WRAPPED, f"tests/platforms/handlers.{request.param}") as function:
        yield function


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
def test_a_stream_that_breaks_ends_in_trailers(handlers: Function, api: RuntimeAPIServer) -> None:
    outcome = api.invoke(url_event("/breaks"))
    assert outcome.streamed_body == b"first"
    assert outcome.trailers[ERROR_TYPE] == "Runtime.OSError"
    told = json.loads(base64.b64decode(outcome.trailers[ERROR_BODY]))
    assert told == {"errorMessage": "the stream broke", "errorType": "OSError", "stackTrace": []}
    assert "Traceback" in handlers.said()
    assert api.invoke(url_event("/whole")).streamed_body == b"firstlast"


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
@pytest.mark.parametrize(
    ("path", "status", "code"), [("/refused", 429, "queue_full"), ("/fails", 500, "internal_error")]
)
def test_an_error_before_the_first_part_has_its_status(
    handlers: Function, api: RuntimeAPIServer, path: str, status: int, code: str
) -> None:
    streamed = api.invoke(url_event(path))
    assert streamed.prelude["statusCode"] == status
    assert json.loads(streamed.streamed_body)["error"]["code"] == code
    event = url_event(path)
    event["requestContext"]["domainName"] = "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com"
    assert api.invoke(event).json()["statusCode"] == status
    assert "nothing came" in handlers.said() or path == "/refused"


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
def test_an_empty_part_does_not_end_a_stream(handlers: Function, api: RuntimeAPIServer) -> None:
    assert api.invoke(url_event("/whole")).streamed_body == b"firstlast"


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
def test_a_large_answer_is_no_trouble_in_a_stream(handlers: Function, api: RuntimeAPIServer) -> None:
    assert len(api.invoke(url_event("/large")).streamed_body) > 7_000_000


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
def test_a_large_answer_that_has_to_be_whole_is_an_error_that_says_so(
    handlers: Function, api: RuntimeAPIServer
) -> None:
    event = url_event("/large")
    event["requestContext"]["domainName"] = "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com"
    answer = api.invoke(event).json()
    assert answer["statusCode"] == 500
    error = json.loads(answer["body"])["error"]
    assert error["code"] == "answer_too_large"
    assert error["message"].startswith("The answer takes 7,000,")
    assert "6,291,556 at most" in error["message"]


@pytest.mark.parametrize("handlers", ["streams"], indirect=True)
def test_the_runtime_outlives_a_sandbox_that_cuts_an_endless_stream(handlers: Function, api: RuntimeAPIServer) -> None:
    api.leave_after_bytes = 100_000
    api.send(url_event("/endless"))
    api.outcome()
    api.leave_after_bytes = None
    assert api.invoke(url_event("/whole")).streamed_body == b"firstlast"


@pytest.mark.parametrize("body", [QUESTION, {**QUESTION, "stream": True}], ids=["whole", "stream"])
def test_nothing_is_streamed_unless_the_function_url_does(
    api: RuntimeAPIServer, tmp_path: Path, model_path: str, body: dict[str, Any]
) -> None:
    with running(api, tmp_path, MODEL=model_path):
        outcome = api.invoke(url_event("/chat", body))
    assert outcome.kind == "response"
    assert outcome.json()["statusCode"] == 200
