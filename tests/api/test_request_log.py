"""One line of JSON for each request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from llamafn.engine.engine import Engine
from llamafn.settings import Settings
from tests.api.asking import SETTINGS, ask


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What was logged so far."""
    logger = logging.getLogger("llamafn.request")
    logger.addHandler(caplog.handler)
    yield lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == "llamafn.request"]
    logger.removeHandler(caplog.handler)


QUESTION = {"messages": [{"role": "user", "content": "the secret of the maize"}], "max_tokens": 3, "temperature": 0}


def test_a_refused_request(lines: Any) -> None:
    reply = ask("/chat", {}, headers={"x-request-id": "from-the-caller"})
    (line,) = lines()
    assert line.pop("ms") >= 0
    assert line == {
        "severity": "INFO",
        "message": "POST /chat 400",
        "id": "from-the-caller",
        "method": "POST",
        "route": "/chat",
        "status": 400,
        "error": "invalid_fields",
    }
    assert reply.headers["X-Request-Id"] == "from-the-caller"


@pytest.mark.parametrize("sent", ["", "a b", "a\r\nSet-Cookie: x", "x" * 129, "ñ"])
def test_an_id_that_is_not_fit_for_a_header_is_replaced(lines: Any, sent: str) -> None:
    reply = ask("/health", headers={"x-request-id": sent})
    assert len(reply.headers["X-Request-Id"]) == 32
    assert lines()[0]["id"] == reply.headers["X-Request-Id"]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(lines: Any, stream: bool) -> None:
    assert ask("/v1/chat/completions", {**QUESTION, "stream": stream}).status == 200
    (line,) = lines()
    assert line["start"] == "warm"
    assert line["streamed"] is stream
    assert (line["status"], line["finish_reason"], line["completion_tokens"]) == (200, "length", 3)
    assert line["prompt_tokens"] > 3
    assert line["ms"] >= line["prefill_ms"] + line["decode_ms"]
    assert "secret" not in json.dumps(line)


@pytest.mark.usefixtures("loaded")
def test_the_prompt_only_if_it_is_asked_for(lines: Any) -> None:
    ask("/v1/chat/completions", QUESTION, settings=SETTINGS._replace(log_prompts=True))
    assert lines()[0]["prompt"] == QUESTION["messages"]


def test_never_a_key(lines: Any) -> None:
    settings = SETTINGS._replace(api_keys=Settings.from_env({"API_KEYS": "a-secret-key"}).api_keys, log_prompts=True)
    ask("/chat", {}, headers={"authorization": "Bearer a-secret-key"}, settings=settings)
    ask("/chat", {}, headers={"x-api-key": "another-secret-key"}, settings=settings)
    assert len(lines()) == 2
    assert "secret" not in json.dumps(lines())


def test_an_unknown_path_is_not_in_it(lines: Any) -> None:
    ask("/my/secret")
    assert lines()[0]["message"] == "GET unknown path 404"
    assert "secret" not in json.dumps(lines())


@pytest.mark.parametrize(("project", "said"), [(None, "105445aa7843"), ("farm", "projects/farm/traces/105445aa7843")])
def test_cloud_run_shows_a_requests_lines_together(lines: Any, project: str | None, said: str) -> None:
    settings = SETTINGS._replace(google_cloud_project=project)
    ask("/health", headers={"x-cloud-trace-context": "105445aa7843/1;o=1"}, settings=settings)
    assert lines()[0]["logging.googleapis.com/trace"] == said


@pytest.mark.usefixtures("loaded")
def test_on_lambda_the_line_is_metrics_too(lines: Any) -> None:
    settings = SETTINGS._replace(metrics=True, aws_lambda_function_name="chat")
    ask("/v1/chat/completions", QUESTION, settings=settings, origin={"lambda_request_id": "r-1"})
    (line,) = lines()
    assert (line["function"], line["lambda_request_id"], line["ColdStarts"], line["QueueLength"]) == (
        "chat",
        "r-1",
        0,
        0,
    )
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["function"]]
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert units["TimeToFirstToken"] == "Milliseconds"
    assert units["TokensPerSecond"] == "Count/Second"
    assert all(isinstance(line[name], int | float) for name in units)
    assert isinstance(line["_aws"]["Timestamp"], int)


def test_a_client_that_leaves_midway_leaves_a_line_and_no_turn(lines: Any, loaded: Engine) -> None:
    from llamafn.app import App
    from llamafn.deadline import Deadline
    from llamafn.web import ClosingBody, Request

    body = json.dumps({**QUESTION, "stream": True, "max_tokens": 200}).encode()
    request = Request("POST", "/v1/chat/completions", read_body=lambda limit: body, deadline=Deadline.after(60))
    parts = App(SETTINGS).respond(request).body
    assert isinstance(parts, ClosingBody)
    assert next(parts) == b": ping\n\n"
    assert next(parts).startswith(b"data: ")
    assert lines() == []
    parts.close()
    assert loaded.answering == 0
    assert lines()[0]["finish_reason"] == "cancelled"
    assert lines()[0]["completion_tokens"] < 20


def test_a_stream_that_nobody_reads_gives_its_turn_back(loaded: Engine) -> None:
    from llamafn.app import App
    from llamafn.deadline import Deadline
    from llamafn.web import ClosingBody, Request

    body = json.dumps({**QUESTION, "stream": True}).encode()
    request = Request("POST", "/v1/chat/completions", read_body=lambda limit: body, deadline=Deadline.after(60))
    parts = App(SETTINGS).respond(request).body
    assert isinstance(parts, ClosingBody)
    assert loaded.answering == 1
    parts.close()
    assert loaded.answering == 0
