"""The handler on its own: deadlines, INIT, and the real model."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import model_loader
from llamafn.app import App
from llamafn.errors import ModelUnavailable
from llamafn.platforms import lambda_init
from llamafn.platforms.aws import LambdaHandler, lambda_handler
from llamafn.settings import Secret, Settings
from llamafn.web import Request, Response
from tests.platforms.contexts import Context
from tests.platforms.functions import url_event

pytestmark = pytest.mark.usefixtures("nothing_loaded")

QUESTION = {"context": "¿Cuándo debo regar?", "max_tokens": 4}


@pytest.fixture
def settings(model_path: str) -> Settings:
    return Settings.from_env({"MODEL": model_path, "N_CTX": "2048", "N_THREADS": "1"})


def answer_of(settings: Settings, body: Any, milliseconds: int = 60_000) -> tuple[int, Any]:
    """Status and body of a /chat through a Function URL."""
    answer = LambdaHandler(App(settings))(url_event("/chat", body), Context(milliseconds))
    return answer["statusCode"], json.loads(answer["body"])


def test_it_answers_with_the_real_model(settings: Settings) -> None:
    answer = LambdaHandler(App(settings))(url_event("/chat", {**QUESTION, "stream": True}), Context())
    assert answer["statusCode"] == 200
    assert answer["body"].endswith("data: [DONE]\n\n")


def test_a_direct_invocation_needs_no_key_and_a_url_does(settings: Settings) -> None:
    """It has no headers to send one in, and IAM has let it in."""
    handler = LambdaHandler(App(settings._replace(api_keys=(Secret("k1"),))))
    assert handler(QUESTION, Context())["content"]
    assert handler(url_event("/chat", QUESTION), Context())["statusCode"] == 401
    assert handler({"source": "aws.events"}, Context())["warm"] is True


def test_no_time_at_all(settings: Settings) -> None:
    status, body = answer_of(settings, QUESTION, 400)
    assert (status, body["error"]["code"]) == (503, "deadline_passed")


def test_time_that_runs_out_while_loading(settings: Settings) -> None:
    """The next invocation goes on with what was begun."""
    status, body = answer_of(settings, QUESTION, 510)
    assert (status, body["error"]["code"]) == (503, "deadline_passed")
    assert answer_of(settings, QUESTION)[0] == 200


def test_time_that_runs_out_in_a_prefill(settings: Settings) -> None:
    """Stopped within the batch; what follows is answered."""
    answer_of(settings, QUESTION)
    began = time.monotonic()
    status, body = answer_of(settings, {"context": "word " * 1900, "max_tokens": 4}, 700)
    assert time.monotonic() - began < 2  # and not until it is read
    assert status == 503 or body["finish_reason"] == "deadline"
    assert answer_of(settings, QUESTION)[0] == 200


def test_the_front_doors_limit_counts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has been on its way for 28.6 s of an HTTP API's 30 s leaves 0.9 s, less than the function has."""
    answer_of(settings, QUESTION)
    event = url_event("/chat", {"context": "Write a very long story.", "max_tokens": 1000})
    event["requestContext"].update(domainName="api.example.com", timeEpoch=int((time.time() - 28.6) * 1000))
    began = time.monotonic()
    answer = json.loads(LambdaHandler(App(settings))(event, Context())["body"])
    assert time.monotonic() - began < 5  # and not until it is written
    assert answer["finish_reason"] == "deadline"


def test_a_ping_answers_what_it_loaded(settings: Settings) -> None:
    answer = LambdaHandler(App(settings))({"source": "aws.events"}, Context())
    assert answer["warm"] is True
    assert model_loader.state()["state"] == "ready"


def test_a_ping_has_no_reader_so_its_failure_is_an_error() -> None:
    with pytest.raises(ModelUnavailable, match="/nowhere"):
        LambdaHandler(App(Settings.from_env({"MODEL": "/nowhere/model.gguf"})))({"warmer": True}, Context())


def test_nothing_is_loaded_outside_of_lambda(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)
    lambda_handler(App(settings._replace(preload=True)))
    assert model_loader.state() == {"state": "cold"}


def test_on_demand_nothing_is_loaded_unless_asked(settings: Settings) -> None:
    lambda_init.initialize(settings, "on-demand")
    assert model_loader.state() == {"state": "cold"}


def test_on_demand_nothing_is_fetched_in_init(settings: Settings) -> None:
    remote = settings._replace(preload=True, model="https://192.0.2.1/model.gguf", local_model_path="/nowhere/a.gguf")
    lambda_init.initialize(remote, "on-demand")
    assert model_loader.state() == {"state": "cold"}


def test_an_init_that_takes_too_long_goes_on_in_the_first_invocation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the seconds of INIT were used up: it ends at once, and the load that it began is the one that counts."""
    monkeypatch.setattr(lambda_init, "ON_DEMAND_SECONDS", 0.0)
    lambda_init.initialize(settings._replace(preload=True), "on-demand")
    assert "INIT ends without the model" in caplog.text
    begun = model_loader._load
    assert begun is not None
    assert answer_of(settings, QUESTION)[0] == 200
    assert model_loader._load is begun


def test_a_restored_copy_has_random_numbers_of_its_own() -> None:
    state = random.getstate()
    lambda_init.after_restore()
    assert random.getstate() != state


def test_answers_of_restored_copies_differ(settings: Settings) -> None:
    """Two copies go on from the same memory; here it is one, put back to where it was."""
    body = {"context": "Write any word.", "max_tokens": 24}
    state = random.getstate()
    contents = set()
    for _ in range(4):
        random.setstate(state)
        contents.add(answer_of(settings, body)[1]["content"])
    assert len(contents) > 1


class Parts:
    """A streamed body that has to be closed, as the engine's turn is given back then."""

    def __init__(self) -> None:
        self.is_closed = False
        self._left = [b"second", b"first"]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            raise StopIteration
        return self._left.pop()

    def close(self) -> None:
        self.is_closed = True


class Streams(App):
    parts: Parts

    def respond(self, request: Request) -> Response:
        self.parts = Parts()
        return Response(200, [], self.parts)


def test_a_streamed_body_is_closed_however_it_ends() -> None:
    app = Streams(Settings.from_env({"LAMBDA_STREAM": "1"}))
    handler = LambdaHandler(app)
    assert handler(url_event("/"), Context())["body"] == "firstsecond"
    assert app.parts.is_closed
    pieces = handler.stream(url_event("/"), Context())
    assert pieces is not None
    assert next(pieces).endswith(bytes(8) + b"first")
    assert not app.parts.is_closed
    pieces.close()
    assert app.parts.is_closed
