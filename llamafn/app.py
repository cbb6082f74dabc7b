"""The route table: any platform's request in, an answer out, and never a stack trace to a caller."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llamafn.api import chat, status
from llamafn.errors import HTTPError, InvalidSchema, MethodNotAllowed, NotFound, SettingsError
from llamafn.settings import Settings
from llamafn.web import Request, Response, error_response

log = logging.getLogger("llamafn")

Handler = Callable[[Request, Settings], Response]

ROUTES: dict[str, dict[str, Handler]] = {
    "/chat": {"POST": chat.chat},
    "/health": {"GET": status.health},
    "/warmup": {"GET": status.warmup, "POST": status.warmup},
    # Leapcell asks all three; the last is its own spelling.
    "/kaithhealth": {"GET": status.probe},
    "/kaithhealthcheck": {"GET": status.probe},
    "/kaithheathcheck": {"GET": status.probe},
}


class App:
    """`respond` answers requests under one set of settings.

    Raises:
        SettingsError: CHAT_SCHEMA is a schema that cannot be enforced.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.chat_schema is not None:
            _check_chat_schema(settings.chat_schema)

    def respond(self, request: Request) -> Response:
        """The answer to a request; errors are answers, too."""
        try:
            response = self._route(request)
        except HTTPError as error:
            response = error_response(error)
        except Exception as error:
            log.error("%s %s failed", request.method, request.path, exc_info=error)
            response = error_response(HTTPError("Something went wrong here; the log says what."))
        self._allow_origin(request, response)
        if request.method == "HEAD":
            length = len(response.body) if isinstance(response.body, bytes) else 0
            response = Response(response.status, [*response.headers, ("Content-Length", str(length))], b"")
        return response

    def _route(self, request: Request) -> Response:
        methods = ROUTES.get(request.path)
        if methods is None:
            raise NotFound(f"There is nothing at {request.path}.", hint=f"There is {', '.join(ROUTES)}.")
        allowed = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}
        if request.method == "OPTIONS" and self.settings.cors_origins:
            return _preflight(allowed)
        handler = allowed.get(request.method)
        if handler is None:
            raise MethodNotAllowed(f"{request.path} does not take {request.method}.", allow=tuple(allowed))
        return handler(request, self.settings)

    def _allow_origin(self, request: Request, response: Response) -> None:
        """CORS: let a page on an allowed origin read the answer. https://fetch.spec.whatwg.org/#http-cors-protocol"""
        if not self.settings.cors_origins:
            return
        response.headers.append(("Vary", "Origin"))
        origin = request.headers.get("origin", "")
        if origin and ("*" in self.settings.cors_origins or origin in self.settings.cors_origins):
            response.headers.append(("Access-Control-Allow-Origin", origin))


def _check_chat_schema(schema: dict[str, Any]) -> None:
    """Refuse to start with a schema under which no request could be answered."""
    from llamafn.engine.constraint.schema import compile_schema

    try:
        compile_schema(schema)
    except InvalidSchema as error:
        raise SettingsError(f"CHAT_SCHEMA cannot be used: {error.message}", hint=error.hint) from error


def _preflight(allowed: dict[str, Handler]) -> Response:
    headers = [
        ("Access-Control-Allow-Methods", ", ".join(allowed)),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key"),
        ("Access-Control-Max-Age", "86400"),
    ]
    return Response(204, headers, b"")
