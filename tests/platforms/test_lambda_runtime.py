"""What only our runtime loop does, or only under bad luck."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platforms.functions import WRAPPED, Function, running, url_event
from tests.platforms.runtime_api_server import RuntimeAPIServer
from tests.servers import poll

STORY = {"context": "Write a very long story.", "max_tokens": 400}


@pytest.fixture
def handlers(api: RuntimeAPIServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Function]:
    """Our loop with one of tests/platforms/handlers.py."""
    with running(api, tmp_path, WRAPPED, f"tests/platforms/handlers.{request.param}") as function:
        yield function


@pytest.mark.parametrize("handlers", ["too_large"], indirect=True)
def test_an_answer_that_is_refused_becomes_an_error(handlers: Function, api: RuntimeAPIServer) -> None:
    """AWS's own client ends here, and the sandbox with it."""
    refused = api.invoke(7_000_000)
    assert refused.kind == "error"
    assert refused.json()["errorType"] == "RuntimeAPIError"
    assert "413" in refused.json()["errorMessage"]
    assert api.invoke(3).json() == "xxx"


@pytest.mark.parametrize("handlers", ["echo"], indirect=True)
def test_a_connection_that_was_closed_unsaid_is_opened_again(handlers: Function, api: RuntimeAPIServer) -> None:
    """As it may be after hours of being frozen."""
    api.hangs_up = True
    for number in range(3):
        assert api.invoke(number).json()["event"] == number


def test_a_handler_that_is_not_there(api: RuntimeAPIServer, tmp_path: Path) -> None:
    with running(api, tmp_path, WRAPPED, "nowhere.handler") as function:
        failed = api.started.get(timeout=60)
        assert failed.json()["errorMessage"] == "No module named 'nowhere'"
        assert function.wait() == 1


def test_a_snapshot_without_the_library_for_hooks(
    snapshot_api: RuntimeAPIServer, tmp_path: Path, model_path: str
) -> None:
    (tmp_path / "snapshot_restore_py.py").write_text("raise ImportError('not installed')")
    environ = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "MODEL": model_path, "PYTHONPATH": str(tmp_path)}
    api = snapshot_api
    with running(api, tmp_path, **environ):
        assert api.snapshot_asked.wait(60)
        api.restored.set()
        assert api.invoke({"context": "Hola", "max_tokens": 1}).json()["content"]


def test_a_full_disk_spoils_no_answer(api: RuntimeAPIServer, tmp_path: Path, model_path: str) -> None:
    """No file may grow past 100 KB: whatever is kept for later cannot be."""
    limited = ("prlimit", "--fsize=100000", *WRAPPED)
    with running(api, tmp_path, limited, MODEL=model_path, DEFAULT_SYSTEM="Eres un asistente agrónomo. " * 10):
        for _ in range(2):
            assert api.invoke({"context": "Hola", "max_tokens": 2}).json()["content"]
    assert [path for path in tmp_path.rglob("*") if path.stat().st_size >= 100_000] == []


def test_a_runtime_that_is_killed_leaves_nothing_that_spoils_the_next(tmp_path: Path, model_path: str) -> None:
    """Lambda starts it again with the same /tmp."""
    environ = {"MODEL": model_path, "LAMBDA_STREAM": "1", "DEFAULT_SYSTEM": "Eres un asistente agrónomo. " * 10}
    first = RuntimeAPIServer(snapshot=False)
    with running(first, tmp_path, **environ) as function:
        first.invoke({"warmup": True})
        first.send(url_event("/chat", {**STORY, "stream": True}))
        poll("it is answering", lambda: first.under_way and first.under_way.chunks)
        function.process.kill()
        assert first.outcome().kind == ""
    snapshots = list(tmp_path.glob("*.snapshot"))
    assert snapshots
    for path in snapshots:
        os.truncate(path, path.stat().st_size // 2)  # as after a crash of the machine
    (tmp_path / "left.snapshot.new").write_bytes(b"cut")
    second = RuntimeAPIServer(snapshot=False)
    with running(second, tmp_path, **environ):
        assert second.invoke({"context": "Hola", "max_tokens": 2}).json()["content"]
