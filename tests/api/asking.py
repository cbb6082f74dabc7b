"""Requests to the app, with no server between."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from llamafn.app import App
from llamafn.deadline import Deadline
from llamafn.settings import Settings
from llamafn.web import Request

SETTINGS = Settings.from_env({"MODEL": "/nowhere/model.gguf", "N_CTX": "512"})


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The events of a stream, without its comments; the last is "[DONE]" if nothing broke."""
        said = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in said]


def ask(
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    settings: Settings = SETTINGS,
    deadline: Deadline | None = None,
    is_gone: Callable[[], bool] | None = None,
    origin: dict[str, str] | None = None,
) -> Reply:
    """POST the body as JSON, or GET if there is none. A streamed answer is collected."""
    data = b"" if body is None else json.dumps(body).encode()
    request = Request(
        method or ("GET" if body is None else "POST"),
        path,
        headers=headers,
        read_body=lambda limit: data[:limit],
        deadline=deadline or Deadline.after(120),
        is_gone=is_gone,
        origin=origin,
    )
    response = App(settings).respond(request)
    content = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return Reply(response.status, dict(response.headers), content)
