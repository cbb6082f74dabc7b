"""/health, /warmup, and the paths that platforms probe."""

from __future__ import annotations

import sys
from typing import Any

import llamafn
import model_loader
from llamafn.settings import Settings, shown
from llamafn.timeline import COLD_START
from llamafn.web import Request, Response, json_response


def health(request: Request, settings: Settings) -> Response:
    """Whether the process answers, and how far the model is. Never loads, never waits."""
    return json_response(
        {
            "status": "ok",
            "model": {"uri": shown(settings.model), **model_loader.state()},
            "cold_start": COLD_START.to_json(),
            "versions": _versions(),
        }
    )


def probe(request: Request, settings: Settings) -> Response:
    return json_response({"status": "ok"})


def warmup(request: Request, settings: Settings) -> Response:
    """Load the model, read the default system prompt if there is one, and answer when that is done."""
    engine = model_loader.get_model(settings, request.deadline)
    read_tokens = 0
    if settings.default_system is not None:
        with COLD_START.phase("system prompt"):
            read_tokens = len(engine.read(settings.default_system, request.deadline))
    return json_response(
        {
            "warm": True,
            "model": engine.model.description,
            "system_tokens": read_tokens,
            "cold_start": COLD_START.to_json(),
        }
    )


def _versions() -> dict[str, Any]:
    versions = {"llamafn": llamafn.__version__, "python": sys.version.partition(" ")[0]}
    if model_loader.loaded() is not None:
        from llamafn.engine import bindings

        versions["llama.cpp"] = bindings.version()
    return versions
