"""One kept-alive HTTP connection that follows redirects.

http.client, because the imports of urllib3 take twice as long (figures: docs/decisions.md).
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping
from email.message import Message
from types import TracebackType
from urllib.parse import quote, urljoin, urlsplit

from llamafn import __version__
from llamafn.errors import FetchFailed, FetchRefused
from llamafn.fetch.proxy import proxy_for

MOST_REDIRECTS = 5
# What has a meaning in an address, and so is left as it is; the rest is encoded.
URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
# What comes before the body of an error is enough to say why.
ERROR_BODY_BYTES = 4096


class Reply:
    """The answer to one request, its body not read yet. Used with `with`: leaving it keeps or drops the connection."""

    def __init__(
        self, connection: Connection, response: http.client.HTTPResponse, url: str, redirects: list[Message]
    ) -> None:
        self._connection = connection
        self._response = response
        self.url = url
        self.status = response.status
        self.headers: Message = response.headers
        self.redirects = redirects  # headers of the redirects that led here, first one first

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A body that was not read to its end would be taken for the next answer.
        if error is not None or not self._response.isclosed():
            self._connection.close()

    @property
    def length(self) -> int | None:
        """Bytes of the body as declared, None if they were not."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isdecimal() else None

    def read_into(self, buffer: memoryview) -> int:
        """Bytes read; 0 where the body ends, which may be too early."""
        return self._response.readinto(buffer)

    def error_body(self) -> str:
        return self._response.read(ERROR_BODY_BYTES).decode("utf-8", "replace")


class Connection:
    """To one host at a time. For one thread; only `abort` may be called from another.

    `send` raises FetchRefused for what a next try would not change, and OSError and HTTPException for what it might.
    """

    def __init__(self, *, allow_http: bool) -> None:
        self._allow_http = allow_http
        self._origin: tuple[str, str, int] | None = None
        self._client: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._aborted = False

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
        body: Iterable[memoryview] | None = None,
    ) -> Reply:
        """`timeout` in seconds holds for the connect, for every read and for every piece of the body.

        A body is iterated over once for each address that it is sent to; `headers` must tell its Content-Length.
        """
        sent = {"User-Agent": f"llamafn/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        redirects: list[Message] = []
        while True:
            response = self._exchange(method, url, sent, timeout, body)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return Reply(self, response, url, redirects)
            redirects.append(response.headers)
            response.read(ERROR_BODY_BYTES)
            if not response.isclosed():
                self.close()
            target = urljoin(url, location)
            if len(redirects) > MOST_REDIRECTS:
                raise FetchRefused(
                    f"{_host(url)} redirects in a loop: {len(redirects)} redirects, the last to {_host(target)}.",
                    hint="Check the address in MODEL, and HF_ENDPOINT if it is set.",
                )
            if origin_of(target) != origin_of(url):
                # Storage hosts refuse a foreign token, and must not learn it.
                for name in ("Authorization", "x-amz-security-token"):
                    sent.pop(name, None)
            url = target

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._socket is not None:
            self._socket.close()
        self._client = self._socket = self._origin = None

    def abort(self) -> None:
        """Wake the thread that reads from this connection; from now on it only gets errors."""
        self._aborted = True
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                # Not SSLSocket's own: it takes the TLS layer away under the reading thread.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], timeout: float, body: Iterable[memoryview] | None
    ) -> http.client.HTTPResponse:
        origin = origin_of(url)
        self._check_scheme(origin)
        if origin != self._origin:
            self.close()
        reused = self._client is not None
        try:
            return self._request(method, url, headers, timeout, body)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            # A server may close an idle connection at any moment; that is no failure of the source.
            if not reused or self._aborted:
                raise
            return self._request(method, url, headers, timeout, body)
        except BaseException:
            self.close()
            raise

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], timeout: float, body: Iterable[memoryview] | None
    ) -> http.client.HTTPResponse:
        client = self._client or self._connect(origin_of(url), timeout)
        if self._aborted:
            raise ConnectionAbortedError("the fetch was stopped")
        assert self._socket is not None
        self._socket.settimeout(timeout)
        parts = urlsplit(url)
        # http.client refuses a space or an accent, with the whole address in its message.
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=URL_CHARACTERS)
        try:
            client.request(method, target, body=body, headers=dict(headers))
        except ConnectionError:
            if body is None:
                raise
            # A server that refuses a body may say why, and close, before it has read it all.
        return client.getresponse()

    def _connect(self, origin: tuple[str, str, int], timeout: float) -> http.client.HTTPConnection:
        scheme, host, port = origin
        proxy = proxy_for(host, port) if scheme == "https" else None
        near = (proxy.host, proxy.port) if proxy else (host, port)
        if scheme == "https":
            client: http.client.HTTPConnection = http.client.HTTPSConnection(
                *near, timeout=timeout, context=tls_context()
            )
        else:
            client = http.client.HTTPConnection(*near, timeout=timeout)
        if proxy:
            client.set_tunnel(host, port, proxy.headers)
        try:
            client.connect()
        except ssl.SSLCertVerificationError as error:
            raise FetchRefused(
                f"The certificate of {host} cannot be verified: {error.verify_message}.",
                hint="Check the clock and the system's CA certificates (package ca-certificates, or SSL_CERT_FILE).",
            ) from error
        except ssl.SSLError:
            raise
        except OSError as error:
            if proxy is None:
                raise
            raise ConnectionError(f"the proxy {proxy.host}:{proxy.port} (HTTPS_PROXY): {error}") from error
        # HTTPResponse takes the socket away from its connection where the server says `Connection: close`.
        self._client, self._socket, self._origin = client, client.sock, origin
        return client

    def _check_scheme(self, origin: tuple[str, str, int]) -> None:
        scheme, host, _ = origin
        if scheme == "https" or (scheme == "http" and (self._allow_http or is_loopback(host))):
            return
        raise FetchRefused(
            f"{scheme}://{host} is not asked: only https, and http on this machine, is trusted with a model.",
            hint="Use an https:// address, or ALLOW_HTTP=1 with MODEL_SHA256 set.",
        )


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdecimal())


def origin_of(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise FetchFailed(f"An address with the port {parts.netloc.rpartition(':')[2]!r} cannot be asked.") from error
    return parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80)


def _host(url: str) -> str:
    return urlsplit(url).hostname or "?"


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Shared, because reading the CA certificates takes longer than a handshake."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    # A bare image has no CA certificates; requests brings certifi.
    import certifi

    return ssl.create_default_context(cafile=certifi.where())
