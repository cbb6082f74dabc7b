"""Which path answers what. A route's module is imported by the first request for it: no cold start pays for all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from llamafn.settings import Settings
from llamafn.web import Request, Response

Handler = Callable[[Request, Settings], Response]


class Route(NamedTuple):
    """What answers one method of one path."""

    module: str
    name: str  # of the function in it
    is_open: bool = False  # to those without a key, too
    has_body: bool = False  # whose fields are what `fields(settings)` of the module says
    needs_model: bool = False

    def handler(self) -> Handler:
        return getattr(importlib.import_module(self.module), self.name)  # type: ignore[no-any-return]

    def fields(self, settings: Settings) -> Any:
        return importlib.import_module(self.module).fields(settings)


_PROBE = Route("llamafn.api.status", "probe", is_open=True)
_WARMUP = Route("llamafn.api.status", "warmup", needs_model=True)

ROUTES: dict[str, dict[str, Route]] = {
    "/chat": {"POST": Route("llamafn.api.chat", "chat", has_body=True, needs_model=True)},
    "/v1/chat/completions": {"POST": Route("llamafn.api.openai.chat", "complete", has_body=True, needs_model=True)},
    "/v1/completions": {"POST": Route("llamafn.api.openai.completions", "complete", has_body=True, needs_model=True)},
    "/v1/models": {"GET": Route("llamafn.api.openai.models", "models")},
    "/health": {"GET": Route("llamafn.api.status", "health", is_open=True)},
    "/warmup": {"GET": _WARMUP, "POST": _WARMUP},
    "/metrics": {"GET": Route("llamafn.metrics", "exposition")},
    "/openapi.json": {"GET": Route("llamafn.api.description", "openapi")},
    "/": {"GET": Route("llamafn.api.page", "playground", is_open=True)},
    # Leapcell asks all three; the last is its own spelling.
    "/kaithhealth": {"GET": _PROBE},
    "/kaithhealthcheck": {"GET": _PROBE},
    "/kaithheathcheck": {"GET": _PROBE},
}
