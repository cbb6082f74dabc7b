from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

import llamafn.fetch
from llamafn.deadline import Deadline
from llamafn.errors import FetchFailed
from llamafn.fetch import ModelFile, open_model
from llamafn.fetch import retry as retry_module
from llamafn.settings import Settings
from tests.fetch.server import ScriptedServer

Open = Callable[..., ModelFile]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[ScriptedServer]:
    """A second host, so far as origins go."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 that takes any credentials."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model.gguf"


@pytest.fixture
def open_(target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """`open_model` with settings as keywords, closed at the end. Waits between attempts are short."""
    monkeypatch.setattr(retry_module.Policy, "delay", lambda self, failures: 0.01 * failures)
    opened: list[ModelFile] = []

    def open_one(uri: str, **settings: Any) -> ModelFile:
        environ = {"MODEL": uri, "LOCAL_MODEL_PATH": str(target), "FETCH_STALL_SECONDS": "2", **settings}
        model = open_model(Settings.from_env(environ), soon())
        if model not in opened:
            opened.append(model)
        return model

    yield open_one
    for model in opened:
        model.close()
    llamafn.fetch._open.clear()


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def go_on_until_whole(model: ModelFile) -> None:
    """As callers do whose fetch's deadline is short: a busy machine may need many of them."""
    for _ in range(100):
        with contextlib.suppress(FetchFailed):
            model.wait_whole(soon())
            return
    pytest.fail("not whole after 100 runs")


def left_in(target: Path) -> list[str]:
    """What lies in the model's directory, the model and its marker apart."""
    if not target.parent.exists():
        return []
    expected = {target.name, f"{target.name}.fetched.json"}
    return sorted(entry.name for entry in target.parent.iterdir() if entry.name not in expected)
