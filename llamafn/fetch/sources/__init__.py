"""Where a model comes from. A source says how to ask for one object, and reads what its kind of server answers.

Ranges, retries and redirects are the same for all of them and live in `llamafn.fetch.download`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llamafn.errors import FetchRefused
from llamafn.settings import Settings

if TYPE_CHECKING:
    from llamafn.fetch.connection import Reply

Headers = dict[str, str]


class ObjectVersion(NamedTuple):
    """What tells one version of an object from the next."""

    size: int  # bytes
    etag: str | None
    digest: str | None  # SHA-256, 64 hexadecimal digits
    modified: float | None  # seconds since 1970


class Source(Protocol):
    """One object at one address."""

    @property
    def shown(self) -> str:
        """The URI for messages and logs: no credentials, no query."""

    def request(self, method: str = "GET") -> tuple[str, Headers]:
        """Address and headers to ask with, made anew for every request since signatures grow old."""

    def pin(self, etag: str) -> Headers:
        """Headers that make a server refuse a range of any other version."""

    def digest(self, reply: Reply) -> str | None:
        """The SHA-256 that an answer with bytes, or a redirect on the way to it, tells."""

    def ask_digest(self, send: Callable[[str, str, Headers], Reply]) -> str | None:
        """The SHA-256 by a request of its own, where `digest` found none. None if the source has none."""

    def adapts(self, reply: Reply) -> bool:
        """Whether a refusal taught the source to ask otherwise: S3 names the right region."""

    def refusal(self, reply: Reply) -> FetchRefused:
        """The error that says why a status of 4xx was given, and what to do."""


def identity_of(uri: str, settings: Settings) -> str:
    """Tells an object from every other, and can be written to a disk: no credentials, a query as a digest only.

    Made without the source's own module, which imports an HTTP client: a warm disk needs none.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        # The endpoint is not part of it: a mirror has the same files.
        return uri if "@" in rest else f"{uri}@main"
    if scheme == "s3":
        endpoint = settings.aws_endpoint_url_s3 or settings.s3_endpoint_url
        return f"{uri} at {endpoint}" if endpoint else uri
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    identity = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    if query:
        import hashlib

        identity += "?" + hashlib.sha256(query.encode()).hexdigest()[:16]
    return identity


def source_of(uri: str, settings: Settings) -> Source:
    """The source of a URI that is not local. `settings` knows the schemes."""
    scheme = uri.partition("://")[0]
    if scheme == "hf":
        from llamafn.fetch.sources.hf import HuggingFaceSource

        return HuggingFaceSource(uri, settings)
    if scheme == "s3":
        from llamafn.fetch.sources.s3 import S3Source

        return S3Source(uri, settings)
    from llamafn.fetch.sources.https import HTTPSSource

    return HTTPSSource(uri)
