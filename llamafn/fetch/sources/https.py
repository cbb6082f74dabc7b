"""Any web server: `https://host/path/model.gguf`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from urllib.parse import unquote, urlsplit, urlunsplit

from llamafn.errors import FetchRefused
from llamafn.fetch.connection import Reply
from llamafn.fetch.sources import Headers


class HTTPSSource:
    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        self._headers: Headers = {}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + b64encode(user.encode()).decode()
        self.shown = urlunsplit((parts.scheme, host, parts.path, "", ""))

    def request(self, method: str = "GET") -> tuple[str, Headers]:
        return self._url, dict(self._headers)

    def pin(self, etag: str) -> Headers:
        # Servers that do not know If-Match ignore it, so every answer's own ETag is compared as well.
        return {"If-Range": etag}

    def digest(self, reply: Reply) -> str | None:
        return None

    def ask_digest(self, send: Callable[[str, str, Headers], Reply]) -> str | None:
        return None

    def adapts(self, reply: Reply) -> bool:
        return False

    def refusal(self, reply: Reply) -> FetchRefused:
        hint = {
            401: "The address needs credentials: https://user:password@host/..., or a signed address.",
            403: "The address is not allowed. If it is a signed one, it may have expired: make a new one.",
            404: "Check the address in MODEL.",
            410: "Check the address in MODEL.",
        }.get(reply.status)
        return FetchRefused(f"{self.shown}: the server answered {reply.status}.", hint=hint)
