"""Loading once, failing clearly, and trying again."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

import model_loader
from llamafn.deadline import Deadline
from llamafn.errors import DeadlinePassed, ModelUnavailable
from llamafn.settings import Settings
from tests.fetch.server import ScriptedServer

pytestmark = pytest.mark.usefixtures("nothing_loaded")


def settings_for(path: Path | str) -> Settings:
    return Settings.from_env({"MODEL": str(path), "N_CTX": "256"})


def test_a_model_that_is_missing_is_tried_again(tmp_path: Path, model_path: str) -> None:
    path = tmp_path / "model.gguf"
    settings = settings_for(path)
    assert model_loader.state() == {"state": "cold"}
    with pytest.raises(ModelUnavailable) as caught:
        model_loader.get_model(settings, Deadline.after(60))
    assert caught.value.status == 503
    assert caught.value.hint
    assert caught.value.headers() == [("Retry-After", "10")]
    assert model_loader.state()["state"] == "failed"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelUnavailable, match="is not a GGUF model"):
        model_loader.get_model(settings, Deadline.after(60))
    shutil.copyfile(model_path, path)
    assert model_loader.get_model(settings, Deadline.after(60)).n_ctx == 256
    assert model_loader.state()["state"] == "ready"


def test_requests_that_arrive_together_load_once(model_path: str) -> None:
    settings = settings_for(model_path)
    engines = []
    threads = [
        threading.Thread(target=lambda: engines.append(model_loader.get_model(settings, Deadline.after(60))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, engines))) == 1


def test_a_request_that_cannot_wait_says_so_and_the_loading_goes_on(model_path: str) -> None:
    settings = settings_for(model_path)
    with pytest.raises(DeadlinePassed, match="while the model was loading"):
        model_loader.get_model(settings, Deadline.after(0))
    assert model_loader.get_model(settings, Deadline.after(60))


def test_weights_that_were_mapped_before_a_fork_are_used(model_path: str) -> None:
    threads = threading.active_count()
    model_loader.preload(settings_for(model_path))
    assert threading.active_count() == threads
    engine = model_loader.get_model(settings_for("/not/read/again.gguf"), Deadline.after(60))
    assert engine.model is model_loader._inherited


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(ModelUnavailable, match="no_such_package"):
        model_loader.get_model(settings_for("package://no_such_package/model.gguf"), Deadline.after(60))


def test_a_snapshot_goes_where_the_settings_say(model_path: str, tmp_path: Path) -> None:
    with ScriptedServer() as server:
        environ = {
            "MODEL": model_path,
            "N_CTX": "256",
            "SNAPSHOT_DIR": str(tmp_path),
            "SNAPSHOT_URI": "s3://shared/farm/",
            "S3_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "hidden",
        }
        engine = model_loader.get_model(Settings.from_env(environ), Deadline.after(60))
        engine.read("You know all about irrigation, soil, maize, beans and coffee. " * 10, Deadline.after(60))
        (kept,) = tmp_path.glob("*.snapshot")
        assert list(server.objects) == [f"/shared/farm/{kept.name}"]
