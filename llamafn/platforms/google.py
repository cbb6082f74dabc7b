"""functions-framework, and with it Cloud Run functions: a Flask request in, what Flask can answer with out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from llamafn.app import App
from llamafn.platforms.wsgi import headers_of, request_of

if TYPE_CHECKING:
    import flask

FlaskAnswer = tuple["bytes | Iterable[bytes]", int, list[tuple[str, str]]]


def http_function(app: App) -> Callable[[flask.Request], FlaskAnswer]:
    """The app as an HTTP function."""
    # functions-framework imports the function before it makes its server, which takes its number of threads from here.
    os.environ.setdefault("THREADS", str(app.settings.server_threads))

    def serve(request: flask.Request) -> FlaskAnswer:
        # Flask's request wraps a WSGI environment; nothing else of it is needed.
        response = app.respond(request_of(request.environ, app.settings))
        return response.body, response.status, headers_of(response)

    return serve
