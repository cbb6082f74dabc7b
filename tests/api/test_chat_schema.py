"""POST /chat under a schema, through the real gunicorn."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafn.errors import SettingsError
from llamafn.settings import Settings
from tests.api.test_bad_input import respond
from tests.engine.schemas import FARM, check
from tests.servers import GUNICORN, ROOT, Answer, Server, serving

QUESTION = {"system": "Eres un asistente agrónomo.", "context": {"mensaje": "¿Cuándo debo regar?"}}
OTHER = {"type": "object", "properties": {"regar": {"type": "boolean"}}, "required": ["regar"]}


@pytest.fixture(scope="module")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a default schema, from a file."""
    directory = tmp_path_factory.mktemp("schema")
    schema = directory / "farm.json"
    schema.write_text(json.dumps(FARM))
    environ = {"MODEL": model_path, "N_CTX": "512", "N_THREADS": "1", "CHAT_SCHEMA": str(schema)}
    with serving(GUNICORN, directory, **environ) as running:
        running.get("/warmup")
        yield running


def content(answer: Answer, schema: Any) -> Any:
    assert answer.status == 200, answer.body
    text = answer.json()["content"]
    check(schema, text)
    return json.loads(text)


def test_an_old_backend_gets_json_that_parses(server: Server) -> None:
    """The contract's request, not a field more."""
    answer = server.chat(**QUESTION, max_tokens=40)
    assert content(answer, FARM)["role"] in ("consulta", "consejo", "saludo")
    details = answer.json()["usage"]["completion_tokens_details"]
    assert 0 < details["forced_tokens"] < answer.json()["usage"]["completion_tokens"] <= 40


def test_a_request_brings_its_own_schema(server: Server) -> None:
    answer = server.chat(**QUESTION, schema=OTHER, temperature=2, seed=5)
    assert isinstance(content(answer, OTHER)["regar"], bool)
    assert answer.json()["finish_reason"] == "stop"
    assert server.chat(**QUESTION, schema=OTHER, temperature=2, seed=5).json()["content"] == answer.json()["content"]


def test_a_stream_adds_up_to_a_document(server: Server) -> None:
    events = server.chat(**QUESTION, max_tokens=40, stream=True).events()
    check(FARM, "".join(event.get("content", "") for event in events))


def test_time_that_runs_out_closes_the_document(server: Server) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 30}
    answer = server.chat(**QUESTION, schema=schema, max_tokens=400, timeout_ms=1500)
    assert answer.json()["finish_reason"] == "deadline"
    assert len(content(answer, schema)) >= 30


def test_tokens_that_run_out_close_the_document(server: Server) -> None:
    answer = server.chat(**QUESTION, max_tokens=30)
    content(answer, FARM)
    assert answer.json()["finish_reason"] == "length"


def error(answer: Answer) -> dict[str, Any]:
    assert answer.status == 400, answer.body
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_what_cannot_be_done_is_refused(server: Server) -> None:
    found = error(server.chat(**QUESTION, schema={"type": "array", "uniqueItems": True}))
    assert (found["code"], found["param"]) == ("invalid_schema", "schema")
    assert "the keyword `uniqueItems` is not enforced here" in found["message"]
    found = error(server.chat(**QUESTION, max_tokens=3))
    assert found["param"] == "max_tokens"
    assert "The shortest document under the schema has" in found["message"]
    assert error(server.chat(**QUESTION, stop="}"))["param"] == "stop"


def test_without_a_schema_stop_and_temperature_do_what_they_say(model_path: str, tmp_path: Path) -> None:
    question = {"context": "Count from 1 to 10, separated by commas.", "temperature": 0, "max_tokens": 20}
    with serving(GUNICORN, tmp_path, MODEL=model_path, N_CTX="512", N_THREADS="1") as server:
        assert server.chat(**question, stop=[", 4"]).json()["content"] == "1, 2, 3"
        assert server.chat(**question, stop=", 3").json()["content"] == "1, 2"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schema", "{}", 'schema: found "{}"; expected an object'),
        ("temperature", 3, "temperature: found 3; expected a number from 0 to 2"),
        ("seed", "1", 'seed: found "1"; expected an integer'),
        ("stop", ["a", ""], 'stop[1]: found ""; expected a string that is not empty'),
        ("timeout_ms", 0, "timeout_ms: found 0; expected an integer from 1 to 3,600,000"),
        ("schema", {"type": "string", "format": "iri"}, '#/format: "iri" is not enforced here'),
    ],
)
def test_bad_fields_are_refused_without_a_model(field: str, value: Any, said: str) -> None:
    response, answer = respond("POST", "/chat", json.dumps({"context": "x", field: value}).encode())
    assert response.status == 400
    assert said in answer["error"]["message"]


@pytest.mark.parametrize("text", ["[]", "{", "7", "/nowhere/schema.json", "@/nowhere/schema.json"])
def test_a_default_that_is_no_schema(text: str) -> None:
    with pytest.raises(SettingsError, match="CHAT_SCHEMA="):
        Settings.from_env({"CHAT_SCHEMA": text})


def test_a_default_that_cannot_be_enforced_stops_the_start(model_path: str) -> None:
    environ = {**os.environ, "MODEL": model_path, "CHAT_SCHEMA": '{"type": "array", "uniqueItems": true}'}
    result = subprocess.run(GUNICORN, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "CHAT_SCHEMA cannot be used: #: the keyword `uniqueItems` is not enforced here" in result.stderr


def test_a_default_may_be_inline() -> None:
    assert Settings.from_env({"CHAT_SCHEMA": json.dumps(FARM)}).chat_schema == FARM
