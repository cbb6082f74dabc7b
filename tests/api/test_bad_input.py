"""Requests that are refused: each says the field, what was found and the rule. None of them loads a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_loader
from llamafn.app import App
from llamafn.deadline import Deadline
from llamafn.settings import Settings
from llamafn.web import Request, Response

SETTINGS = Settings.from_env({"MODEL": "/nowhere/model.gguf", "MAX_BODY_BYTES": "4096"})


def respond(
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    settings: Settings = SETTINGS,
) -> tuple[Response, Any]:
    request = Request(
        method,
        path,
        headers=headers,
        read_body=lambda limit: body[:limit],
        deadline=Deadline.after(60),
    )
    response = App(settings).respond(request)
    assert isinstance(response.body, bytes)
    return response, json.loads(response.body) if response.body else None


def deep(levels: int) -> bytes:
    return b'{"context":' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "invalid_json", "The body is empty; expected a JSON object."),
        (b"  \n", "invalid_json", "The body is empty; expected a JSON object."),
        (b"{", "invalid_json", "The body is not JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", "invalid_json", "The body is [1]; expected a JSON object."),
        (b"null", "invalid_json", "The body is null; expected a JSON object."),
        (b'{"context": NaN}', "invalid_json", "NaN is not a JSON value"),
        (b'{"context": "\xff"}', "invalid_json", "The body is not UTF-8: byte 13 is 0xff."),
        (b'{"context": ' + b"9" * 4000 + b"0" * 60 + b"}", "model_unavailable", ""),  # a number like any other
        (deep(100), "invalid_fields", "context: nested too deeply; 64 levels are allowed"),
        (deep(1900), "invalid_", "nested too deeply; 64 levels are allowed"),
        (b'{"context": "\\ud800"}', "invalid_fields", "context: found half of a surrogate pair"),
        (b'{"context": {"a": ["\\udfff"]}}', "invalid_fields", "context: found half of a surrogate pair"),
        (b'{"context": 1, "\\ud800": 1}', "invalid_fields", "half of a surrogate pair"),
        (b"{}", "invalid_fields", "context: missing; expected any JSON value"),
        (b'{"context": 1, "system": 7}', "invalid_fields", "system: found 7; expected a string"),
        (
            b'{"context": 1, "max_tokens": 0}',
            "invalid_fields",
            "max_tokens: found 0; expected an integer from 1 to 1,024",
        ),
        (b'{"context": 1, "max_tokens": 1000000}', "invalid_fields", "max_tokens: found 1000000; expected an integer"),
        (b'{"context": 1, "max_tokens": true}', "invalid_fields", "max_tokens: found true; expected an integer"),
        (b'{"context": 1, "max_tokens": "8"}', "invalid_fields", 'max_tokens: found "8"; expected an integer'),
        (b'{"context": 1, "max_tokens": 1.5}', "invalid_fields", "max_tokens: found 1.5; expected an integer"),
        (b'{"context": 1, "stream": 1}', "invalid_fields", "stream: found 1; expected true or false"),
    ],
)
def test_a_bad_body(body: bytes, code: str, said: str) -> None:
    response, answer = respond("POST", "/chat", body)
    error = answer["error"]
    assert error["code"].startswith(code)
    assert said in error["message"]
    assert response.status == (503 if code == "model_unavailable" else 400)
    assert error["type"] == ("server_error" if code == "model_unavailable" else "invalid_request_error")


def test_one_error_names_every_bad_field() -> None:
    _, answer = respond("POST", "/chat", b'{"system": [], "max_tokens": -3}')
    assert set(answer["error"]["fields"]) == {"context", "system", "max_tokens"}


def test_a_long_value_is_not_quoted_whole() -> None:
    _, answer = respond("POST", "/chat", json.dumps({"context": 1, "system": ["x" * 3000]}).encode())
    assert len(answer["error"]["message"]) < 200


@pytest.mark.parametrize("headers", [{"content-length": "5000"}, {}], ids=["said", "chunked"])
def test_a_body_that_is_too_large(headers: dict[str, str]) -> None:
    response, answer = respond("POST", "/chat", b"x" * 5000, headers)
    assert response.status == 413
    assert answer["error"]["code"] == "body_too_large"
    assert "the limit is 4,096 (MAX_BODY_BYTES)" in answer["error"]["message"]


def test_an_unknown_path_and_a_wrong_method() -> None:
    response, answer = respond("GET", "/nothing")
    assert (response.status, answer["error"]["code"]) == (404, "not_found")
    response, answer = respond("PUT", "/warmup")
    assert (response.status, answer["error"]["code"]) == (405, "method_not_allowed")
    assert ("Allow", "GET, POST, HEAD") in response.headers


def test_cors_is_off_unless_it_is_set() -> None:
    response, _ = respond("OPTIONS", "/chat", headers={"origin": "https://farm.example"})
    assert response.status == 405
    assert not any(name.startswith("Access-Control") for name, _ in response.headers)


def test_cors_for_the_origins_that_are_set() -> None:
    settings = SETTINGS._replace(cors_origins=("https://farm.example",))
    response, _ = respond("OPTIONS", "/chat", settings=settings, headers={"origin": "https://farm.example"})
    assert response.status == 204
    assert ("Access-Control-Allow-Origin", "https://farm.example") in response.headers
    assert ("Access-Control-Allow-Methods", "POST") in response.headers
    response, _ = respond("GET", "/health", settings=settings, headers={"origin": "https://farm.example"})
    assert ("Access-Control-Allow-Origin", "https://farm.example") in response.headers
    response, _ = respond("GET", "/health", settings=settings, headers={"origin": "https://other.example"})
    assert not any(name == "Access-Control-Allow-Origin" for name, _ in response.headers)


def test_an_error_of_ours_is_a_plain_500(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(settings: Settings, deadline: Deadline) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(model_loader, "get_model", fail)
    response, answer = respond("POST", "/chat", b'{"context": "x"}')
    assert response.status == 500
    assert "secret" not in str(answer)
    assert "Traceback" not in str(answer)
    assert "secret detail" in caplog.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["system", "context", "max_tokens", "stream", "other"]), json_values))
def test_any_json_is_taken_or_refused_but_never_breaks(body: dict[str, Any]) -> None:
    response, answer = respond("POST", "/chat", json.dumps(body).encode())
    assert response.status in (400, 413, 503)  # 503: it was accepted, and there is no model
    assert answer["error"]["message"]


@given(st.binary(max_size=64))
def test_any_bytes_are_refused(body: bytes) -> None:
    response, _ = respond("POST", "/chat", body)
    assert response.status == 400
