"""One connection's work: ask for a range, judge the answer, take the bytes, try again."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from llamafn.errors import FetchFailed, FetchRefused
from llamafn.fetch.answer import Replaced, can_pin, check_same, check_status, checked_range, is_surely_same, version_of
from llamafn.fetch.connection import Connection, Reply, origin_of
from llamafn.fetch.part import Part
from llamafn.fetch.progress import Meter
from llamafn.fetch.ranges import HEAD_SPAN, KIB, Span
from llamafn.fetch.retry import Again, AskedToWait, Policy
from llamafn.fetch.run import Run
from llamafn.fetch.sources import ObjectVersion, Source
from llamafn.fetch.transfer import JOURNAL_BYTES, Transfer

logger = logging.getLogger(__name__)

BUFFER_BYTES = 256 * KIB

Result = TypeVar("Result")


class Address:
    """Where the object is: at its source, or in the storage that a redirect led to, with a signature in its query."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._storage: str | None = None
        self._fresh_refused = 0  # addresses in a row that were refused although they were new

    def request(self) -> tuple[str, dict[str, str], bool]:
        """Address, headers, and whether the source itself is asked."""
        storage = self._storage
        return (storage, {}, False) if storage else (*self.source.request(), True)

    def worked(self, reply: Reply, asked: str) -> None:
        with self._lock:
            self._fresh_refused = 0
            # One on the source's own host is not kept: it may want the token again.
            if reply.redirects and origin_of(reply.url) != origin_of(asked):
                self._storage = reply.url

    def refused(self, reply: Reply, *, is_fresh: bool) -> None:
        """Signatures expire: raise Again to ask for a new address, unless new ones are refused too."""
        with self._lock:
            if self._storage == reply.url:
                self._storage = None
            self._fresh_refused += is_fresh
            if self._fresh_refused <= 1:
                raise Again(f"the storage answered {reply.status}, its address may have expired", delay=0.0)


class Fetcher:
    """For one thread. What it shares with the others is in `run`, `address` and `meter`."""

    def __init__(self, connection: Connection, run: Run, policy: Policy, address: Address, meter: Meter) -> None:
        self._connection = connection
        self._run = run
        self._policy = policy
        self._address = address
        self._source = address.source
        self._meter = meter
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._received = 0  # bytes

    def begin(self, expected: str | None, open_transfer: Callable[[ObjectVersion], Transfer]) -> Transfer:
        """Learn the object's version, let room be made for it, and take its first bytes."""
        return self._retrying(lambda: self._first_exchange(expected, open_transfer))

    def go_on(self, transfer: Transfer) -> None:
        """Fetch one span, if one is wanted: to see whether the object is still the same."""
        self._retrying(lambda: self._exchange_one(transfer, transfer.take()))

    def fetch_all(self, transfer: Transfer) -> None:
        """Fetch whatever is wanted until nothing is."""
        while self._retrying(lambda: self._exchange_one(transfer, transfer.next_span(self._run))):
            pass

    def ask_digest(self) -> str | None:
        """By a request of its own, tried once: without it the content is only not verified."""
        try:
            return self._source.ask_digest(self._send)
        except (OSError, http.client.HTTPException, FetchRefused) as error:
            logger.info("%s: its SHA-256 cannot be asked for: %s", self._source.shown, error)
            return None

    def _retrying(self, attempt: Callable[[], Result]) -> Result:
        """Attempt until it returns. This connection gives up if no other has brought a byte meanwhile either."""
        failures = 0
        before = self._meter.received
        while True:
            self._run.sleep_while_patient()
            received = self._received
            try:
                return attempt()
            except Again as again:
                problem = again
            except (OSError, http.client.HTTPException) as error:
                said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                problem = Again(f"{type(error).__name__}: {said}")
            self._run.check()
            failures = 1 if self._received > received else failures + 1
            logger.info("%s: %s; attempt %d", self._source.shown, problem.reason, failures)
            if failures >= self._policy.attempts:
                if self._meter.received == before:
                    raise FetchFailed(
                        f"{self._source.shown}: {problem.reason}; given up after {failures} attempts.",
                        hint="Check the network and the address in MODEL. What has arrived is kept for the next try.",
                        retry_after=problem.delay or self._policy.longest_delay,
                    )
                before = self._meter.received
            if problem.delay is None:
                self._run.sleep(self._policy.delay(failures))
            elif problem.delay >= self._run.remaining:
                raise AskedToWait(
                    f"{self._source.shown}: {problem.reason}, and asks to wait {problem.delay:,.0f} s.",
                    seconds=problem.delay,
                )
            else:
                self._run.be_patient(problem.delay)

    def _first_exchange(self, expected: str | None, open_transfer: Callable[[ObjectVersion], Transfer]) -> Transfer:
        asked = Span(0, HEAD_SPAN)
        with self._ask(asked, None, ranged=True) as reply:
            version = version_of(reply, asked, self._source)
            if expected and version.digest not in (None, expected):
                raise FetchRefused(
                    f"{self._source.shown}: MODEL_SHA256 is {expected}, but the source says {version.digest}.",
                    hint="Check MODEL (a revision pins a version) and MODEL_SHA256.",
                )
            transfer = open_transfer(version)
            transfer.ranged = reply.status == 206
            transfer.single = not transfer.ranged
            span = transfer.take()
            assert span is not None
            try:
                self._receive(reply, transfer, span)
            except (Again, OSError, http.client.HTTPException) as error:
                # The next try has a version to go on with.
                logger.info("%s: %s: %s", self._source.shown, type(error).__name__, error)
            finally:
                transfer.put_back(span)
        return transfer

    def _exchange_one(self, transfer: Transfer, span: Span | None) -> bool:
        """Ask for what `span` lacks, and take it. False if there is none.

        After a failure the span goes to whoever is free, and the next attempt may be at another one.
        """
        if span is None:
            return False
        version = transfer.version
        try:
            asked = Span(span.position, span.end)  # another connection may take over its end meanwhile
            with self._ask(asked, version.etag, ranged=not transfer.single) as reply:
                if reply.status == 206:
                    check_same(reply, version, checked_range(reply, asked), self._source)
                    transfer.ranged = True
                elif transfer.ranged:
                    check_same(reply, version, reply.length, self._source)
                    raise Again("asked for a range, got the whole object")
                else:
                    # Ranges are not honoured: what is here already has to come once more before what is wanted.
                    if not is_surely_same(reply, version):
                        raise Replaced(
                            "the server knows no ranges, and nothing tells that the object is the same still"
                        )
                    span = transfer.swap_for_rest(span)
                    self._read_past(reply, span.position)
                self._receive(reply, transfer, span)
        finally:
            transfer.put_back(span)
        return True

    def _ask(self, asked: Span, etag: str | None, *, ranged: bool) -> Reply:
        """An answer with status 200 or 206."""
        url, headers, at_source = self._address.request()
        if ranged:
            headers["Range"] = f"bytes={asked.position}-{asked.end - 1}"
        if etag is not None and can_pin(etag):
            headers.update(self._source.pin(etag))
        reply = self._send("GET", url, headers)
        try:
            if reply.status in (400, 403) and (reply.redirects or not at_source):
                self._address.refused(reply, is_fresh=at_source)
            check_status(reply, self._source)
        except BaseException:
            self._connection.close()
            raise
        self._address.worked(reply, url)
        return reply

    def _send(self, method: str, url: str, headers: dict[str, str]) -> Reply:
        return self._connection.send(method, url, headers, min(self._policy.stall, max(0.1, self._run.remaining)))

    def _read_past(self, reply: Reply, left: int) -> None:
        while left:
            count = reply.read_into(self._buffer[: min(left, BUFFER_BYTES)])
            if count == 0:
                raise Again(f"the body ended {left:,} bytes before what is wanted")
            self._run.check()
            left -= count

    def _receive(self, reply: Reply, transfer: Transfer, span: Span) -> None:
        part: Part = transfer.part
        recorded = span.position
        try:
            while span.remaining:
                count = reply.read_into(self._buffer[: min(span.remaining, BUFFER_BYTES)])
                if count == 0:
                    raise Again(f"the body ended {span.remaining:,} bytes early")
                self._run.check()
                transfer.write(span, self._buffer[:count])
                self._received += count
                self._meter.add(count)
                if span.position - recorded >= JOURNAL_BYTES:
                    part.record(recorded, span.position)
                    recorded = span.position
        finally:
            if span.position > recorded:
                part.record(recorded, span.position)
