"""A model that comes over the network, under our runtime loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.server import Answer, ScriptedServer
from tests.platforms.functions import WRAPPED, running, url_event
from tests.platforms.runtime_api_server import RuntimeAPIServer
from tests.servers import poll

QUESTION = {"context": "¿Cuándo debo regar?", "max_tokens": 2}


@pytest.fixture
def store(model_path: str) -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.put("/model.gguf", Path(model_path).read_bytes())
        yield server


def environ_of(store: ScriptedServer, directory: Path) -> dict[str, str]:
    return {"MODEL": f"{store.url}/model.gguf", "LOCAL_MODEL_PATH": str(directory / "models" / "model.gguf")}


def test_time_that_runs_out_while_fetching(api: RuntimeAPIServer, store: ScriptedServer, tmp_path: Path) -> None:
    """The next invocation goes on with what has arrived."""
    store.rate = 1e6  # bytes per second and connection
    with running(api, tmp_path, **environ_of(store, tmp_path)):
        answer = api.invoke(url_event("/chat", QUESTION), 1500).json()
        assert answer["statusCode"] == 503
        assert json.loads(answer["body"])["error"]["code"] == "deadline_passed"
        assert "Retry-After" in answer["headers"]
        health = json.loads(api.invoke(url_event("/health", method="GET")).json()["body"])
        assert health["model"]["state"] == "fetching"
        store.rate = None
        assert api.invoke(url_event("/chat", QUESTION), 60_000).json()["statusCode"] == 200


def test_a_runtime_that_is_killed_while_fetching(store: ScriptedServer, tmp_path: Path) -> None:
    """Lambda starts it again with the same /tmp, and what lies there is right in the end."""
    store.rate = 2e6
    environ = environ_of(store, tmp_path)
    first = RuntimeAPIServer(snapshot=False)
    with running(first, tmp_path, **environ) as function:
        first.send(url_event("/chat", QUESTION))
        poll("it is fetching", lambda: any((tmp_path / "models").glob("*")))
        function.process.kill()
        function.wait()
    assert not Path(environ["LOCAL_MODEL_PATH"]).exists()
    store.rate = None
    second = RuntimeAPIServer(snapshot=False)
    with running(second, tmp_path, **environ):
        assert second.invoke(url_event("/chat", QUESTION), 60_000).json()["statusCode"] == 200
    assert Path(environ["LOCAL_MODEL_PATH"]).read_bytes() == store.objects["/model.gguf"]


def test_a_disk_that_is_too_small(api: RuntimeAPIServer, store: ScriptedServer, tmp_path: Path) -> None:
    """No file may grow past 50 MB, half of the model."""
    environ = environ_of(store, tmp_path)
    with running(api, tmp_path, ("prlimit", "--fsize=50000000", *WRAPPED), **environ):
        for _ in range(2):
            answer = api.invoke(url_event("/chat", QUESTION), 60_000).json()
            assert answer["statusCode"] == 503
            assert json.loads(answer["body"])["error"]["hint"]
    assert not Path(environ["LOCAL_MODEL_PATH"]).exists()


def test_a_source_that_fails_is_tried_again(api: RuntimeAPIServer, store: ScriptedServer, tmp_path: Path) -> None:
    store.faults.append(lambda asked: Answer(500, {}))
    with running(api, tmp_path, **environ_of(store, tmp_path)):
        answer = api.invoke(url_event("/chat", QUESTION), 1500).json()
        assert answer["statusCode"] == 503
        assert "Retry-After" in answer["headers"]
        assert api.invoke(url_event("/health", method="GET")).json()["statusCode"] == 200
        store.faults.clear()
        assert api.invoke(url_event("/chat", QUESTION), 60_000).json()["statusCode"] == 200


def test_a_snapshot_holds_the_model_in_memory(
    snapshot_api: RuntimeAPIServer, store: ScriptedServer, tmp_path: Path
) -> None:
    api = snapshot_api
    environ = {**environ_of(store, tmp_path), "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
    with running(api, tmp_path, **environ):
        assert api.snapshot_asked.wait(60)
        asked = len(store.asked)
        assert asked
        store.objects.clear()
        api.restored.set()
        assert api.invoke(QUESTION).json()["content"]
        assert len(store.asked) == asked
    assert not (tmp_path / "models").exists()
