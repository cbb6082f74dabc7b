"""/openapi.json: valid, whole, and true of the answers."""

from __future__ import annotations

from typing import Any

import jsonschema
import openapi_spec_validator
import pytest

from llamafn.api.description import describe
from llamafn.routes import ROUTES
from llamafn.settings import Settings
from tests.api.asking import SETTINGS, ask

EVERYTHING = SETTINGS._replace(playground=True, metrics=True, api_keys=Settings.from_env({"API_KEYS": "k"}).api_keys)
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING], ids=["by default", "everything"])
def test_it_is_valid(settings: Settings) -> None:
    openapi_spec_validator.validate(describe(settings))


def test_it_is_answered() -> None:
    reply = ask("/openapi.json")
    assert reply.json() == describe(SETTINGS)


def test_it_lists_every_route() -> None:
    paths = describe(EVERYTHING)["paths"]
    assert {path: set(operations) for path, operations in paths.items()} == {
        path: {method.lower() for method in routes} for path, routes in ROUTES.items()
    }
    assert set(describe(SETTINGS)["paths"]) == set(ROUTES) - {"/", "/metrics"}


def test_it_says_the_limits_that_are_set() -> None:
    operation = describe(SETTINGS)["paths"]["/chat"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["max_tokens"]["maximum"] == SETTINGS.n_ctx


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/health", None, 200),
        ("/kaithhealth", None, 200),
        ("/warmup", None, 200),
        ("/v1/models", None, 200),
        ("/chat", {"context": "Hello", "max_tokens": 2, "other": 1}, 200),
        ("/chat", {}, 400),
        ("/v1/chat/completions", QUESTION, 200),
        ("/v1/chat/completions", {**QUESTION, "logprobs": True, "top_logprobs": 3}, 200),
        ("/v1/chat/completions", {"messages": [], "other": 1}, 400),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, "logprobs": 1}, 200),
    ],
)
def test_the_answers_are_as_described(path: str, body: Any, status: int) -> None:
    reply = ask(path, body)
    assert reply.status == status
    document = describe(SETTINGS)
    answer = document["paths"][path]["get" if body is None else "post"]["responses"][str(status)]
    if "$ref" in answer:
        answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    schema = answer["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(reply.json())
