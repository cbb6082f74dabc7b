"""What a server's answer to a range request says: which version, which bytes, or why not."""

from __future__ import annotations

import re

from llamafn.errors import FetchRefused
from llamafn.fetch.connection import Reply
from llamafn.fetch.ranges import Span
from llamafn.fetch.retry import Again, retry_after
from llamafn.fetch.sources import ObjectVersion, Source

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
# Timeout, too early, too many requests; the server's own troubles.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class Replaced(Exception):
    """The object is no longer the version that was begun, so nothing of it can be completed."""


def is_passing(status: int) -> bool:
    return status in _PASSING or status >= 500


def check_status(reply: Reply, source: Source) -> None:
    """Return for 200 and 206. What to do about a 403 is the caller's business.

    Raises:
        Again, Replaced, FetchRefused.
    """
    status = reply.status
    if status in (200, 206):
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchRefused(f"{source.shown}: the server compresses it, though identity was asked for.")
        return
    if is_passing(status):
        raise Again(f"the server answered {status}", delay=retry_after(reply.headers.get("Retry-After")))
    if status == 412:
        raise Replaced("the object was replaced")
    if status == 416:
        _, total = _content_range(reply)
        if total == 0:
            raise _empty(source)
        raise Again(f"the server answered 416 to a range, of {total if total is not None else 'unknown'} bytes")
    if source.adapts(reply):
        raise Again("the source asks elsewhere", delay=0.0)
    raise source.refusal(reply)


def version_of(reply: Reply, asked: Span, source: Source) -> ObjectVersion:
    """The version that the first answer, a 200 or a 206, has bytes of."""
    if reply.status == 206:
        size = checked_range(reply, asked)
        if size is None:
            raise Again("the server does not tell the object's size (Content-Range with *)")
    else:
        length = reply.length
        if length is None:
            raise FetchRefused(
                f"{source.shown}: the server neither honours ranges nor tells the size.",
                hint="Use a server that sends Content-Length.",
            )
        size = length
    if size == 0:
        raise _empty(source)
    modified = reply.headers.get("Last-Modified")
    return ObjectVersion(size, reply.headers.get("ETag"), source.digest(reply), _seconds(modified))


def checked_range(reply: Reply, asked: Span) -> int | None:
    """The object's size as a 206 tells it, if it has the bytes that were asked for from their start."""
    bounds, total = _content_range(reply)
    last = asked.end - 1 if total is None else min(asked.end, total) - 1
    if bounds is None or bounds[0] != asked.position or bounds[1] != last:
        said = reply.headers.get("Content-Range")
        raise Again(f"asked for bytes {asked.position}-{asked.end - 1}, got Content-Range {said!r}")
    if reply.length not in (None, bounds[1] - bounds[0] + 1):
        raise Again(f"Content-Range {reply.headers.get('Content-Range')!r} with a Content-Length of {reply.length}")
    return total


def check_same(reply: Reply, version: ObjectVersion, size: int | None, source: Source) -> None:
    """Raise Replaced if an answer has bytes of another version."""
    if size not in (None, version.size):
        raise Replaced(f"the object was replaced: {version.size:,} bytes became {size:,}")
    digest = source.digest(reply)
    if digest is not None and version.digest is not None:
        # Storage hosts may name the same bytes by different ETags.
        if digest != version.digest:
            raise Replaced("the object was replaced: its SHA-256 has changed")
        return
    etag = reply.headers.get("ETag")
    if etag is not None and version.etag is not None and etag != version.etag:
        raise Replaced(f"the object was replaced: ETag {version.etag} became {etag}")


def is_surely_same(reply: Reply, version: ObjectVersion) -> bool:
    """Whether a 200 has the bytes that were begun, so that it can be read on from the middle."""
    if reply.length != version.size:
        return False
    etag = reply.headers.get("ETag")
    if etag is not None:
        return etag == version.etag
    modified = _seconds(reply.headers.get("Last-Modified"))
    return modified is not None and version.etag is None and modified == version.modified


def can_pin(etag: str | None) -> bool:
    """Weak ETags do not promise equal bytes, and servers may not take them for a range."""
    return etag is not None and not etag.startswith("W/")


def _content_range(reply: Reply) -> tuple[tuple[int, int] | None, int | None]:
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    first, last, total = match.groups()
    return (int(first), int(last)) if first else None, None if total == "*" else int(total)


def _seconds(date: str | None) -> float | None:
    if date is None:
        return None
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _empty(source: Source) -> FetchRefused:
    return FetchRefused(f"{source.shown}: the object is empty.", hint="Upload the model again, or check MODEL.")
