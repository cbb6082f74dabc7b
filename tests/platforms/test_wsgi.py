"""The WSGI adapter, under the standard library's own validator."""

from __future__ import annotations

import io
import json
import socket
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from llamafn.app import App
from llamafn.platforms.wsgi import application, request_of
from llamafn.settings import Settings

SETTINGS = Settings.from_env({"MODEL": "/nowhere/model.gguf"})


def call(method: str, path: str, body: bytes = b"") -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
    }
    setup_testing_defaults(environ)
    said: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        said.extend([status, dict(headers)])

    parts = validator(application(App(SETTINGS)))(environ, start_response)
    try:
        answer = b"".join(parts)
    finally:
        parts.close()  # type: ignore[attr-defined]
    return said[0], said[1], answer


def test_it_is_valid_wsgi() -> None:
    status, headers, body = call("GET", "/health")
    assert status == "200 OK"
    assert headers["Content-Length"] == str(len(body))
    assert json.loads(body)["status"] == "ok"


def test_paths_and_bodies_are_utf_8() -> None:
    status, _, body = call("GET", "/maíz".encode().decode("latin-1"))
    assert status == "404 Not Found"
    assert json.loads(body)["error"]["message"] == "There is nothing at /maíz."


def test_headers_have_lower_case_names() -> None:
    environ = {
        "REQUEST_METHOD": "POST",
        "HTTP_X_REQUEST_ID": "1",
        "CONTENT_LENGTH": "3",
        "CONTENT_TYPE": "",
        "wsgi.input": io.BytesIO(b"abc"),
    }
    request = request_of(environ, SETTINGS)
    assert request.headers == {"x-request-id": "1", "content-length": "3"}
    assert request.body(10) == b"abc"


@pytest.mark.parametrize("what", ["waits", "sends", "leaves"])
def test_whether_a_client_is_gone(what: str) -> None:
    client, server = socket.socketpair()
    with client, server:
        environ = {"REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO(), "gunicorn.socket": server}
        is_gone = request_of(environ, SETTINGS).is_gone
        assert is_gone is not None
        if what == "sends":
            client.sendall(b"next request")
        if what == "leaves":
            client.close()
        assert is_gone() is (what == "leaves")
    assert is_gone() is True  # closed on our side
