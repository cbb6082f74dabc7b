"""The function as a process, under AWS's own client as under our runtime loop, before a strict Runtime API.

That AWS's client passes says that the Runtime API of the tests is one.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.platforms.functions import running, url_event
from tests.platforms.runtime_api_server import RuntimeAPIServer

QUESTION = {"system": "Eres un asistente agrónomo.", "context": "¿Cuándo debo regar?", "max_tokens": 8}
STORY = {"context": "Write a very long story.", "max_tokens": 400}


def test_an_event_and_its_context(api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...]) -> None:
    with running(api, tmp_path, command, "tests.platforms.handlers.echo"):
        said = api.invoke({"¿Qué?": [1, None]}, 20_000).json()
    assert said["event"] == {"¿Qué?": [1, None]}
    assert said["trace_id"] == f"Root=1-{said['request_id']}"
    assert 0 < said["remaining"] <= 20_000


def test_a_handler_that_raises_is_an_error_and_the_next_event_is_answered(
    api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with running(api, tmp_path, command, "tests.platforms.handlers.fail"):
        failed = api.invoke("this")
        assert failed.kind == "error"
        assert failed.json()["errorType"] == "ValueError"
        assert failed.json()["errorMessage"] == "no answer to 'this'"
        assert api.invoke("answer").json() == "answered"


def test_bad_settings_fail_the_start(api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...]) -> None:
    with running(api, tmp_path, command, N_CTX="many") as function:
        failed = api.started.get(timeout=60)
        assert failed.kind == "init/error"
        assert "N_CTX='many': expected 64 to 1,048,576 tokens" in failed.json()["errorMessage"]
        assert function.wait() == 1
        assert "N_CTX='many'" in function.said()


def test_a_snapshot_is_taken_with_the_model_loaded(
    snapshot_api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...], model_path: str
) -> None:
    environ = {"MODEL": model_path, "DEFAULT_SYSTEM": "Eres un asistente agrónomo.", "N_CTX": "256"}
    api = snapshot_api
    with running(api, tmp_path, command, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start", **environ):
        assert api.snapshot_asked.wait(60)
        assert not api.ready.is_set()
        time.sleep(0.3)  # the copy is started later
        api.restored.set()
        health = json.loads(api.invoke(url_event("/health", method="GET")).json()["body"])
        assert health["model"]["state"] == "ready"
        assert health["cold_start"] == []  # nothing of the time before the snapshot is told as this copy's
        answer = json.loads(api.invoke(url_event("/chat", {"context": "Hola", "max_tokens": 2})).json()["body"])
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 10  # the system prompt was read before


def test_a_snapshot_without_the_model_is_refused(
    snapshot_api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "MODEL": "/nowhere/model.gguf"}
    with running(snapshot_api, tmp_path, command, **environ) as function:
        failed = snapshot_api.started.get(timeout=60)
        assert failed.kind == "init/error"
        assert "'/nowhere/model.gguf'" in failed.json()["errorMessage"]
        assert function.wait() == 1


@pytest.mark.parametrize(("hook", "kind", "status"), [("before", "init/error", 64), ("after", "restore/error", 65)])
def test_a_hook_that_fails(
    snapshot_api: RuntimeAPIServer,
    tmp_path: Path,
    command: tuple[str, ...],
    hook: str,
    kind: str,
    status: int,
) -> None:
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "FAILING_HOOK": hook}
    snapshot_api.restored.set()
    with running(snapshot_api, tmp_path, command, "tests.platforms.handlers.echo", **environ) as function:
        failed = snapshot_api.started.get(timeout=60)
        assert failed.kind == kind
        assert failed.json()["errorMessage"] == "the hook failed"
        assert function.wait() == status


def test_preload_has_the_model_before_the_first_event(
    api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...], model_path: str
) -> None:
    with running(api, tmp_path, command, MODEL=model_path, PRELOAD="1"):
        health = json.loads(api.invoke(url_event("/health", method="GET")).json()["body"])
    assert health["model"]["state"] == "ready"


def test_provisioned_concurrency_loads_unasked_and_survives_a_missing_model(
    api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...], model_path: str
) -> None:
    path = tmp_path / "model.gguf"
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency", "MODEL": str(path)}
    with running(api, tmp_path, command, **environ):
        refused = api.invoke(url_event("/chat", QUESTION)).json()
        assert refused["statusCode"] == 503
        assert refused["headers"]["Retry-After"] == "10"
        assert json.loads(refused["body"])["error"]["code"] == "model_unavailable"
        shutil.copyfile(model_path, path)
        assert api.invoke(url_event("/chat", QUESTION)).json()["statusCode"] == 200


def test_a_ping_loads_or_fails_as_a_function_does(
    api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...], model_path: str
) -> None:
    path = tmp_path / "model.gguf"
    with running(api, tmp_path, command, MODEL=str(path)):
        failed = api.invoke({"source": "aws.events"})
        assert (failed.kind, failed.json()["errorType"]) == ("error", "ModelUnavailable")
        shutil.copyfile(model_path, path)
        warmed = api.invoke({"source": "aws.events"}).json()
        assert warmed["warm"] is True
        assert "load" in [phase["phase"] for phase in warmed["cold_start"]]


def test_time_that_runs_out_while_decoding_ends_the_answer_where_it_is(
    api: RuntimeAPIServer, tmp_path: Path, command: tuple[str, ...], model_path: str
) -> None:
    with running(api, tmp_path, command, MODEL=model_path, PRELOAD="1"):
        api.invoke({"warmup": True})
        began = time.monotonic()
        answer = json.loads(api.invoke(url_event("/chat", STORY), 3000).json()["body"])
        assert time.monotonic() - began < 3
    assert answer["finish_reason"] == "deadline"
    assert answer["content"]
