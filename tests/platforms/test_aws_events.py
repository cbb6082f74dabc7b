"""The corpus: `tests/events/<shape>/<sample>.json` is an event, and `<sample>.answer.json` the whole answer to it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from llamafn.app import App
from llamafn.errors import BadRequest, UnknownEvent
from llamafn.platforms.aws import LambdaHandler
from llamafn.platforms.aws_events import HTTP_API_SECONDS, REST_API_SECONDS, decode, is_ping
from llamafn.settings import Settings
from llamafn.web import Request, Response, json_response
from tests.platforms.contexts import Context

EVENTS = Path(__file__).resolve().parent.parent / "events"


class Echo(App):
    """Answers with what it was asked, so that a sample shows all that was understood, and with headers that repeat."""

    def respond(self, request: Request) -> Response:
        try:
            body = request.body(1 << 20).decode()
        except BadRequest as error:
            body = f"{type(error).__name__}: {error}"
        said = {"method": request.method, "path": request.path, "headers": dict(request.headers), "body": body}
        repeated = [("Vary", "Origin"), ("Vary", "Accept"), ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")]
        return json_response(said, headers=repeated)


def samples(*shapes: str) -> list[Any]:
    paths = sorted(
        path
        for shape in shapes or ("*",)
        for path in EVENTS.glob(f"{shape}/*.json")
        if not path.name.endswith(".answer.json")
    )
    assert paths
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in paths]


def event_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", samples("function_url", "http_api_*", "rest_api", "alb", "direct"))
def test_a_sample_is_answered_as_a_whole(path: Path) -> None:
    answer = LambdaHandler(Echo(Settings.from_env({})))(event_of(path), Context())
    assert answer == event_of(path.with_suffix(".answer.json"))


@pytest.mark.parametrize("path", samples("unknown"))
def test_an_unknown_event_is_an_error_that_names_what_was_looked_for(path: Path) -> None:
    with pytest.raises(UnknownEvent) as caught:
        LambdaHandler(Echo(Settings.from_env({})))(event_of(path), Context())
    assert {"errorMessage": caught.value.message} == event_of(path.with_suffix(".answer.json"))


@pytest.mark.parametrize("path", samples())
def test_only_pings_are_pings(path: Path) -> None:
    assert is_ping(event_of(path)) == (path.parent.name == "ping")


def test_a_request_that_is_only_named_like_a_ping_is_none() -> None:
    event = event_of(EVENTS / "function_url" / "get.json")
    assert not is_ping({**event, "source": "aws.events"})
    assert not is_ping({"warmup": "no"})


@pytest.mark.parametrize(
    ("sample", "seconds", "answer_bytes"),
    [
        ("function_url/get", float("inf"), 6_291_556),
        ("http_api_v2/default_stage", HTTP_API_SECONDS, 6_291_556),
        ("http_api_v1/default_stage", HTTP_API_SECONDS, 6_291_556),
        ("rest_api/post", REST_API_SECONDS, 6_291_556),
        ("alb/post", float("inf"), 1_048_576),
        ("direct/chat", float("inf"), 6_291_556),
    ],
)
def test_each_front_door_has_its_limits(sample: str, seconds: float, answer_bytes: int) -> None:
    call = decode(event_of(EVENTS / f"{sample}.json"))
    assert (call.seconds, call.answer_bytes) == (seconds, answer_bytes)


@pytest.mark.parametrize(("waited", "left"), [(0, 29), (9, 20), (-5, 29), (40, 29)])
def test_the_limit_counts_from_when_the_front_door_was_asked(
    waited: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = event_of(EVENTS / "rest_api" / "post.json")
    asked_at = event["requestContext"]["requestTimeEpoch"] / 1000
    monkeypatch.setattr("time.time", lambda: asked_at + waited)
    assert decode(event).seconds == left


def test_a_body_that_is_not_text_leaves_as_base64() -> None:
    answer = decode(event_of(EVENTS / "function_url" / "get.json")).encode(Response(200, [], b""), b"\xff\x00")
    assert answer == {
        "statusCode": 200,
        "headers": {},
        "body": base64.b64encode(b"\xff\x00").decode(),
        "isBase64Encoded": True,
    }


def test_server_sent_events_of_a_direct_call_stay_text() -> None:
    answer = decode({"context": 1}).encode(Response(200, [("Content-Type", "text/event-stream")], b""), b"data: 1\n\n")
    assert answer == "data: 1\n\n"
