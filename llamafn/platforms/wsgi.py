"""WSGI, PEP 3333: gunicorn, and with it Leapcell, Cloud Run and plain containers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llamafn.app import App
from llamafn.deadline import Deadline
from llamafn.settings import Settings
from llamafn.web import Request, Response

if TYPE_CHECKING:
    import socket

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def application(app: App) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    """The app as a WSGI callable."""

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        response = app.respond(request_of(environ, app.settings))
        start_response(f"{response.status} {_phrase(response.status)}", headers_of(response))
        return [response.body] if isinstance(response.body, bytes) else response.body

    return serve


def request_of(environ: Mapping[str, Any], settings: Settings) -> Request:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return Request(
        environ["REQUEST_METHOD"],
        # WSGI hands over bytes as Latin-1.
        environ.get("PATH_INFO", "/").encode("latin-1").decode(errors="replace"),
        headers=headers,
        read_body=environ["wsgi.input"].read,
        deadline=Deadline.after(settings.request_timeout_seconds - settings.deadline_margin_ms / 1000),
        is_gone=_watch(environ.get("gunicorn.socket")),
    )


def headers_of(response: Response) -> list[tuple[str, str]]:
    named = {name.lower() for name, _ in response.headers}
    if isinstance(response.body, bytes) and response.status != 204 and "content-length" not in named:
        return [*response.headers, ("Content-Length", str(len(response.body)))]
    return list(response.headers)


def _watch(client: socket.socket | None) -> Callable[[], bool] | None:
    """Whether the client has closed its end; only gunicorn shows the socket.

    One that only half-closes counts as gone, as with most servers.
    """
    if client is None:
        return None
    from socket import MSG_DONTWAIT, MSG_PEEK

    def is_gone() -> bool:
        try:
            return client.recv(1, MSG_PEEK | MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False  # open and silent, as one that waits is
        except OSError:
            return True

    return is_gone


def _phrase(status: int) -> str:
    from http import HTTPStatus  # 1 ms that Lambda has no use for

    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
