"""Any platform's request in, an answer out, and never a stack trace to a caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

from llamafn import request_log
from llamafn.api import access
from llamafn.errors import Draining, HTTPError, InvalidSchema, MethodNotAllowed, NotFound, SettingsError
from llamafn.record import Record
from llamafn.routes import ROUTES
from llamafn.settings import Settings
from llamafn.web import ClosingBody, Request, Response, error_response

log = logging.getLogger("llamafn")

_draining = threading.Event()


def drain() -> None:
    """This process is about to end: what was begun is finished, and nothing new. May be called in a signal handler."""
    _draining.set()


class App:
    """`respond` answers requests under one set of settings.

    Raises:
        SettingsError: CHAT_SCHEMA is a schema that cannot be enforced.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.chat_schema is not None:
            _check_chat_schema(settings.chat_schema)
        request_log.configure()

    def respond(self, request: Request) -> Response:
        """The answer to a request; errors are answers, too."""
        record = request.record
        try:
            response = self._route(request)
        except HTTPError as error:
            record.error = error
            response = error_response(error)
        except Exception as error:
            log.error("%s %s failed", request.method, request.path, exc_info=error)
            record.error = HTTPError("Something went wrong here; the log says what.")
            response = error_response(record.error)
        self._allow_origin(request, response)
        response.headers.append(("X-Request-Id", record.id))
        if request.method == "HEAD":
            length = len(response.body) if isinstance(response.body, bytes) else 0
            response = Response(response.status, [*response.headers, ("Content-Length", str(length))], b"")
        record.status = response.status
        if isinstance(response.body, bytes):
            self._finish(record)
        else:
            response.body = ClosingBody(response.body, partial(self._finish, record))
        return response

    def _route(self, request: Request) -> Response:
        routes = ROUTES.get(request.path)
        if routes is None:
            access.check(request, self.settings)
            raise NotFound(f"There is nothing at {request.path}.", hint=f"There is {', '.join(ROUTES)}.")
        request.record.route = request.path
        allowed = {**routes, **({"HEAD": routes["GET"]} if "GET" in routes else {})}
        if request.method == "OPTIONS" and self.settings.cors_origins:
            return _preflight(allowed)  # which a browser sends without a key
        route = allowed.get(request.method)
        if route is None or not route.is_open:
            access.check(request, self.settings)
        if _draining.is_set() and route is not None and not route.is_open:
            raise Draining("This process is ending.", hint="Try again: another one answers.", retry_after=1)
        if route is None:
            raise MethodNotAllowed(f"{request.path} does not take {request.method}.", allow=tuple(allowed))
        return route.handler()(request, self.settings)

    def _finish(self, record: Record) -> None:
        """Once the answer is out, whole or not."""
        try:
            request_log.write(record, self.settings)
            if self.settings.metrics:
                from llamafn import metrics

                metrics.observe(record)
        except Exception as error:  # an answer is not lost for its log line
            log.error("A request could not be logged.", exc_info=error)

    def _allow_origin(self, request: Request, response: Response) -> None:
        """CORS: let a page on an allowed origin read the answer. https://fetch.spec.whatwg.org/#http-cors-protocol"""
        if not self.settings.cors_origins:
            return
        response.headers.append(("Vary", "Origin"))
        origin = request.headers.get("origin", "")
        if origin and ("*" in self.settings.cors_origins or origin in self.settings.cors_origins):
            response.headers.append(("Access-Control-Allow-Origin", origin))
            response.headers.append(("Access-Control-Expose-Headers", "Retry-After, X-Request-Id"))


def _check_chat_schema(schema: dict[str, Any]) -> None:
    """Refuse to start with a schema under which no request could be answered."""
    from llamafn.engine.constraint.schema import compile_schema

    try:
        compile_schema(schema)
    except InvalidSchema as error:
        raise SettingsError(f"CHAT_SCHEMA cannot be used: {error.message}", hint=error.hint) from error


def _preflight(allowed: Iterable[str]) -> Response:
    headers = [
        ("Access-Control-Allow-Methods", ", ".join(allowed)),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, X-Request-Id"),
        ("Access-Control-Max-Age", "86400"),
    ]
    return Response(204, headers, b"")
