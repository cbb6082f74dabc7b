"""Function URL events, as AWS documents them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from llamafn.app import App
from llamafn.platforms.aws import lambda_handler
from llamafn.settings import Settings

SETTINGS = Settings.from_env({"MODEL": "/nowhere/model.gguf"})


class Context:
    """The part of Lambda's context object that is read."""

    aws_request_id = "8f5a8b2e-0000-0000-0000-000000000000"

    def __init__(self, milliseconds: int = 30_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


def function_url_event(method: str = "GET", path: str = "/health", **over: Any) -> dict[str, Any]:
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "abc.lambda-url.eu-west-1.on.aws"},
        "requestContext": {"http": {"method": method, "path": path, "sourceIp": "192.0.2.1"}, "stage": "$default"},
        "isBase64Encoded": False,
        **over,
    }


def invoke(event: Any, context: Context | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    answer = lambda_handler(App(settings))(event, context or Context())
    json.dumps(answer)  # Lambda will
    return answer


def test_health() -> None:
    answer = invoke(function_url_event())
    assert answer["statusCode"] == 200
    assert set(answer["headers"]) == {"Content-Type", "X-Request-Id"}
    assert answer["headers"]["Content-Type"] == "application/json; charset=utf-8"
    assert answer["isBase64Encoded"] is False
    assert json.loads(answer["body"])["status"] == "ok"


@pytest.mark.parametrize("encoded", [False, True])
def test_a_body_may_be_base64(encoded: bool) -> None:
    body = '{"context": "¿Qué?", "max_tokens": 0}'
    text = base64.b64encode(body.encode()).decode() if encoded else body
    answer = invoke(function_url_event("POST", "/chat", body=text, isBase64Encoded=encoded))
    assert answer["statusCode"] == 400
    assert "max_tokens: found 0" in answer["body"]


def test_no_body_at_all() -> None:
    answer = invoke(function_url_event("POST", "/chat"))
    assert answer["statusCode"] == 400
    assert "The body is empty" in answer["body"]


def test_a_body_that_is_no_base64() -> None:
    answer = invoke(function_url_event("POST", "/chat", body="%%%", isBase64Encoded=True))
    assert answer["statusCode"] == 400
    assert "base64" in answer["body"]


@pytest.mark.parametrize("event", [{}, {"version": "0", "source": "aws.events"}, [], None, "text"])
def test_another_event_says_what_was_looked_for(event: Any) -> None:
    answer = invoke(event)
    assert answer["statusCode"] == 400
    assert "expected version 2.0 and requestContext.http" in answer["body"]


def test_the_remaining_time_is_kept_to() -> None:
    answer = invoke(function_url_event("POST", "/chat", body='{"context": 1}'), Context(400))
    assert answer["statusCode"] == 503
    assert answer["headers"]["Retry-After"]


@pytest.mark.usefixtures("nothing_loaded")
def test_it_answers_with_the_real_model(model_path: str) -> None:
    settings = Settings.from_env({"MODEL": model_path, "N_CTX": "256"})
    body = json.dumps({"context": "¿Cuándo debo regar?", "max_tokens": 4, "stream": True})
    answer = invoke(function_url_event("POST", "/chat", body=body), settings=settings)
    assert answer["statusCode"] == 200
    assert answer["body"].endswith("data: [DONE]\n\n")
