"""GET /: a page to try the model."""

from __future__ import annotations

import os

from llamafn.errors import NotFound
from llamafn.settings import Settings
from llamafn.web import Request, Response

_PAGE = os.path.join(os.path.dirname(__file__), "playground.html")


def playground(request: Request, settings: Settings) -> Response:
    """The page, if PLAYGROUND is on. All of it is in one file, and it asks nobody but this server."""
    if not settings.playground:
        raise NotFound("There is nothing at /.", hint="PLAYGROUND=1 puts a page to try the model here.")
    with open(_PAGE, "rb") as file:
        page = file.read()
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-cache"),
        ("Content-Security-Policy", policy),
    ]
    return Response(200, headers, page)
