"""One object, from its source to a whole and checked file: parallel ranges, retries, resuming, digest.

Threads: one leads (first request, then the end of it all) and fetches; others fetch beside it; one hashes in file order
close behind the bytes; one reads the GGUF's metadata, to know when the engine can begin. All of them belong to one run;
a run that failed can be followed by another, which goes on where it ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import threading
from collections.abc import Callable, Iterator

from llamafn.deadline import Deadline
from llamafn.errors import DeadlinePassed, FetchFailed, FetchRefused, ModelUnavailable
from llamafn.fetch.answer import Replaced, can_pin, check_same, check_status, checked_range, is_surely_same, version_of
from llamafn.fetch.connection import Connection, Reply, origin_of
from llamafn.fetch.gguf import NotGGUF, read_layout
from llamafn.fetch.part import Part, cannot_write, fd_path
from llamafn.fetch.progress import Meter, Progress
from llamafn.fetch.ranges import HEAD_SPAN, KIB, MIB, Ranges, Span
from llamafn.fetch.retry import Again, Policy
from llamafn.fetch.sources import Headers, ObjectVersion, Source

logger = logging.getLogger(__name__)

BUFFER_BYTES = 128 * KIB
# Bytes between two lines of the journal: what a kill can cost, for each connection.
JOURNAL_BYTES = MIB
# A source that changes under every attempt is not waited for.
MOST_RESTARTS = 2
CLOSE_SECONDS = 5.0


class _Stopped(Exception):
    """The run has ended; whoever ended it has said why."""


class _Spoiled(FetchRefused):
    """What is here is of no use, or in the way: it goes."""


class _Run:
    """The threads of one attempt and what they share."""

    def __init__(self, seconds: float) -> None:
        self.deadline = Deadline.after(seconds)
        self.stopped = False
        self.fetchers: list[_Fetcher] = []
        self.threads: list[threading.Thread] = []
        self.not_before = Deadline.after(0)  # a server has asked for patience until then
        self.replaced: str | None = None  # why what is here has to be dropped


class _Fetcher:
    """One thread's connection and buffer."""

    def __init__(self, allow_http: bool) -> None:
        self.connection = Connection(allow_http=allow_http)
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.received = 0  # bytes


class Download:
    """Starts at once. `open_part(version)` makes room for an object; `adopt_part()` takes over what is there of it."""

    def __init__(
        self,
        source: Source,
        policy: Policy,
        expected_digest: str | None,
        open_part: Callable[[ObjectVersion], Part],
        adopt_part: Callable[[], Part | None],
    ) -> None:
        self._source = source
        self._policy = policy
        self._expected = expected_digest
        self._open_part = open_part
        self._adopt_part = adopt_part

        self._changed = threading.Condition()  # guards all of the following
        self._run: _Run | None = None
        self._error: ModelUnavailable | None = None
        self._part: Part | None = None
        self._ranges: Ranges | None = None
        self._version: ObjectVersion | None = None
        self._ranged = False  # the server has answered a range with that range
        self._single = False  # it does not: one stream brings all
        self._address: str | None = None  # where a redirect led: storage with a signature in its query
        self._fresh_refused = 0  # addresses in a row that were refused although they were new
        self._restarts = 0
        self._hash = hashlib.sha256()
        self._hashed = 0  # bytes
        self._data_start: int | None = None
        self._told_loadable = False
        self._whole = False
        self._kept = False
        self._digest: str | None = None
        self._told_digest: str | None = None
        self._received = 0  # bytes, by all connections and runs
        self._meter = Meter()
        self._closed = False
        with self._changed:
            self._start()

    # What the callers see.

    @property
    def path(self) -> str:
        """Leads to the file under whatever name it has; valid from `wait_loadable` to `close`."""
        with self._changed:
            assert self._part is not None, "wait_loadable has not returned"
            return fd_path(self._part.fd)

    @property
    def digest(self) -> str | None:
        return self._digest

    @property
    def error(self) -> ModelUnavailable | None:
        """Why the last run ended, if it did not end well."""
        return self._error

    def wait_loadable(self, deadline: Deadline) -> None:
        self._wait(self._is_loadable, deadline)
        with self._changed:
            self._told_loadable = True

    def wait_whole(self, deadline: Deadline) -> None:
        self._wait(lambda: self._whole, deadline)

    def wait_kept(self, deadline: Deadline) -> None:
        """Until the file has its final name. The engine need not wait for that; who ends the process then must."""
        self._wait(lambda: self._kept, deadline)

    def progress(self) -> Progress:
        with self._changed:
            if self._ranges is None:
                return Progress(0, None, None, None)
            done, total = self._ranges.done, self._ranges.size
            rate = self._meter.rate()
            return Progress(done, total, rate, (total - done) / rate if rate else None)

    def close(self) -> None:
        """End what is under way; good bytes stay for the next try. A whole file is put in its place first."""
        with self._changed:
            self._closed = True
            run = self._run
        if run is not None:
            if not self._whole:
                self._stop(run, None)
            run.threads[0].join(CLOSE_SECONDS if not self._whole else None)
        with self._changed:
            # A thread that hangs in a name lookup may still hold the descriptor, so then it is left open.
            if self._run is None and self._part is not None:
                self._part.close()
                self._part = None

    # Waiting.

    def _is_loadable(self) -> bool:
        return self._whole or (
            self._data_start is not None and self._ranges is not None and self._ranges.prefix >= self._data_start
        )

    def _wait(self, reached: Callable[[], bool], deadline: Deadline) -> None:
        with self._changed:
            while self._run is not None and self._run.stopped and not reached():
                self._sleep(deadline)
            if self._run is None and not reached():
                if self._error is not None and not isinstance(self._error, FetchFailed):
                    raise self._error.with_traceback(None)
                self._start()
            if self._run is not None:
                self._run.deadline = Deadline.after(self._policy.deadline)
            while not reached():
                if self._error is not None:
                    raise self._error.with_traceback(None)
                if self._run is None:
                    raise FetchFailed(f"{self._source.shown}: the fetch was stopped.", retry_after=1)
                self._sleep(deadline)

    def _sleep(self, deadline: Deadline) -> None:
        """Until something has changed."""
        remaining = deadline.remaining()
        if remaining <= 0:
            progress = self.progress()
            left = progress.seconds_left
            raise DeadlinePassed(
                f"The request's time ran out while the model was being fetched ({progress}).",
                hint="Try again: what has arrived is kept.",
                retry_after=1 if left is None else min(max(left, 1), 60),
            )
        self._changed.wait(min(remaining, threading.TIMEOUT_MAX))

    # A run.

    def _start(self) -> None:
        if self._closed:
            raise FetchFailed(f"{self._source.shown}: the fetch was stopped.")
        self._error = None
        self._fresh_refused = 0
        self._meter = Meter()
        self._run = run = _Run(self._policy.deadline)
        self._begin_thread(run, "lead", self._lead)

    def _begin_thread(self, run: _Run, name: str, work: Callable[[_Run], None]) -> None:
        thread = threading.Thread(target=work, args=(run,), name=f"fetch-{name}", daemon=True)
        run.threads.append(thread)
        thread.start()

    def _lead(self, run: _Run) -> None:
        self._guard(run, self._fetch)
        self._guard(run, self._keep)
        with self._changed:
            run.stopped = True
            self._changed.notify_all()
        for thread in run.threads[1:]:
            thread.join()
        with self._changed:
            self._run = None
            if run.replaced is not None:
                self._start_over(run.replaced)
            elif isinstance(self._error, _Spoiled | NotGGUF):
                self._drop_part()
            self._changed.notify_all()

    def _guard(self, run: _Run, work: Callable[[_Run], None]) -> None:
        """Do a thread's work; what goes wrong ends the run."""
        if run.stopped:
            return
        try:
            work(run)
        except _Stopped:
            pass
        except Replaced as reason:
            self._stop(run, None, replaced=str(reason))
        except ModelUnavailable as error:
            self._stop(run, error)
        except Exception as error:
            # Whatever it is, those who wait must learn of it.
            logger.exception("Fetching %s failed unexpectedly", self._source.shown)
            self._stop(run, FetchFailed(f"{self._source.shown}: {type(error).__name__}: {error}"))

    def _stop(self, run: _Run, error: ModelUnavailable | None, replaced: str | None = None) -> None:
        """The first reason counts; those that follow from it do not."""
        with self._changed:
            if run.stopped:
                return
            run.stopped = True
            run.replaced = replaced
            self._error = error
            fetchers = list(run.fetchers)
            self._changed.notify_all()
        for fetcher in fetchers:
            fetcher.connection.abort()

    def _check(self, run: _Run) -> None:
        """Raise if the run is to end."""
        if run.stopped:
            raise _Stopped
        if run.deadline.has_passed():
            raise FetchFailed(
                f"{self._source.shown}: not whole after {self._policy.deadline:g} s ({self.progress()}).",
                hint="Try again: what has arrived is kept. FETCH_DEADLINE_SECONDS allows more time.",
                retry_after=1,
            )

    def _start_over(self, reason: str) -> None:
        """Drop what is here and begin again, but never under an engine that has loaded a part of it."""
        self._drop_part()
        self._restarts += 1
        logger.warning("%s: %s; starting over", self._source.shown, reason)
        if self._told_loadable or self._restarts > MOST_RESTARTS:
            self._told_loadable = False
            self._restarts = 0
            self._error = FetchFailed(
                f"{self._source.shown}: {reason}.", hint="Try again: the model is fetched anew.", retry_after=1
            )
        elif not self._closed:
            self._start()

    def _drop_part(self) -> None:
        if self._part is not None:
            self._part.discard()
            self._part.close()
        self._part = self._ranges = self._version = self._data_start = self._address = None
        self._ranged = self._single = False
        self._hash, self._hashed = hashlib.sha256(), 0

    # Fetching.

    def _fetch(self, run: _Run) -> None:
        with self._fetcher(run) as fetcher:
            self._retrying(run, fetcher, self._first_exchange)
            self._begin_thread(run, "digest", lambda run: self._guard(run, self._follow))
            self._begin_thread(run, "metadata", lambda run: self._guard(run, self._read_metadata))
            for number in range(1, 1 if self._single else self._policy.connections):
                self._begin_thread(run, str(number), lambda run: self._guard(run, self._fetch_beside))
            self._fetch_spans(run, fetcher)
        for thread in run.threads[1:]:
            thread.join()
        with self._changed:
            self._check(run)
            self._finish()

    def _fetch_beside(self, run: _Run) -> None:
        with self._fetcher(run) as fetcher:
            self._fetch_spans(run, fetcher)

    @contextlib.contextmanager
    def _fetcher(self, run: _Run) -> Iterator[_Fetcher]:
        fetcher = _Fetcher(self._policy.allow_http)
        with self._changed:
            self._check(run)
            run.fetchers.append(fetcher)
        try:
            yield fetcher
        finally:
            fetcher.connection.close()

    def _fetch_spans(self, run: _Run, fetcher: _Fetcher) -> None:
        while self._retrying(run, fetcher, self._fetch_next):
            pass

    def _fetch_next(self, run: _Run, fetcher: _Fetcher) -> bool:
        """False if nothing is left. After a failure that may be another span: the first goes to whoever is free."""
        span = self._next_span(run)
        if span is not None:
            self._exchange(run, fetcher, span)
        return span is not None

    def _next_span(self, run: _Run) -> Span | None:
        """Wait for something to fetch; None if nothing is left."""
        with self._changed:
            assert self._ranges is not None
            while True:
                self._check(run)
                span = self._ranges.take_rest() if self._single else self._ranges.take(self._policy.connections)
                if span is not None or self._ranges.is_complete:
                    return span
                self._changed.wait(max(0.0, min(run.deadline.remaining(), threading.TIMEOUT_MAX)))

    def _retrying(self, run: _Run, fetcher: _Fetcher, attempt: Callable[[_Run, _Fetcher], bool]) -> bool:
        """Attempt until it returns. The connection gives up when no other has brought a byte meanwhile either."""
        failures = 0
        before = self._received
        while True:
            self._wait_until(run, run.not_before)
            received = fetcher.received
            try:
                return attempt(run, fetcher)
            except Again as again:
                problem = again
            except (OSError, http.client.HTTPException) as error:
                said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                problem = Again(f"{type(error).__name__}: {said}")
            self._check(run)
            failures = 1 if fetcher.received > received else failures + 1
            logger.info("%s: %s; attempt %d", self._source.shown, problem.reason, failures)
            if failures >= self._policy.attempts:
                if self._received == before:
                    raise FetchFailed(
                        f"{self._source.shown}: {problem.reason}; given up after {failures} attempts.",
                        hint="Check the network and the address in MODEL. What has arrived is kept for the next try.",
                        retry_after=problem.delay or self._policy.longest_delay,
                    )
                before = self._received
            if problem.delay is None:
                self._wait_until(run, Deadline.after(self._policy.delay(failures)))
            elif problem.delay >= run.deadline.remaining():
                raise FetchFailed(
                    f"{self._source.shown}: {problem.reason}, and asks to wait {problem.delay:,.0f} s.",
                    hint="Try again then. What has arrived is kept.",
                    retry_after=problem.delay,
                )
            else:
                run.not_before = Deadline.after(problem.delay)  # for all connections

    def _wait_until(self, run: _Run, moment: Deadline) -> None:
        with self._changed:
            while True:
                self._check(run)
                remaining = min(moment.remaining(), run.deadline.remaining())
                if remaining <= 0:
                    return
                self._changed.wait(remaining)

    def _first_exchange(self, run: _Run, fetcher: _Fetcher) -> bool:
        """Learn the object's version and make room for it; or go on with what is here of it."""
        if self._part is None:
            part = self._adopt_part()
            if part is not None:
                self._take_part(part)
        if self._part is not None:
            with self._changed:
                span = self._take_span()
            if span is not None:
                self._exchange(run, fetcher, span)
            return True
        asked = Span(0, HEAD_SPAN)
        with self._ask(run, fetcher, asked, None) as reply:
            version = version_of(reply, asked, self._source)
            if self._expected and version.digest not in (None, self._expected):
                raise FetchRefused(
                    f"{self._source.shown}: MODEL_SHA256 is {self._expected}, but the source says {version.digest}.",
                    hint="Check MODEL (a revision pins a version) and MODEL_SHA256.",
                )
            self._take_part(self._open_part(version))
            with self._changed:
                self._ranged = reply.status == 206
                self._single = not self._ranged
                span = self._take_span()
            assert span is not None
            try:
                self._receive(run, fetcher, reply, span)
            finally:
                self._put_back(span)
        return True

    def _take_part(self, part: Part) -> None:
        with self._changed:
            self._part = part
            self._version = part.version
            self._ranges = Ranges(part.version.size, part.good)
            self._changed.notify_all()

    def _take_span(self) -> Span | None:
        assert self._ranges is not None
        return self._ranges.take_rest() if self._single else self._ranges.take(self._policy.connections)

    def _put_back(self, span: Span) -> None:
        with self._changed:
            assert self._ranges is not None
            self._ranges.put_back(span)
            self._changed.notify_all()

    def _exchange(self, run: _Run, fetcher: _Fetcher, span: Span) -> None:
        """Ask for what `span` lacks, and take it."""
        version = self._version
        assert version is not None
        try:
            with self._changed:
                asked = Span(span.position, span.end)  # another connection may take over the end of it meanwhile
            with self._ask(run, fetcher, asked, version.etag) as reply:
                if reply.status == 206:
                    check_same(reply, version, checked_range(reply, asked), self._source)
                    self._ranged = True
                elif self._ranged:
                    check_same(reply, version, reply.length, self._source)
                    raise Again("asked for a range, got the whole object")
                else:
                    # Ranges are not honoured: what is here already has to come once more before what is wanted.
                    if not is_surely_same(reply, version):
                        raise Replaced(
                            "the server knows no ranges, and nothing tells that the object is the same still"
                        )
                    span = self._swap_for_rest(span)
                    self._read_past(fetcher, reply, span.position)
                self._receive(run, fetcher, reply, span)
        finally:
            self._put_back(span)

    def _swap_for_rest(self, span: Span) -> Span:
        with self._changed:
            assert self._ranges is not None
            self._single = True
            self._ranges.put_back(span)
            rest = self._ranges.take_rest()
            assert rest is not None
            return rest

    def _read_past(self, fetcher: _Fetcher, reply: Reply, left: int) -> None:
        while left:
            count = reply.read_into(fetcher.buffer[: min(left, BUFFER_BYTES)])
            if count == 0:
                raise Again(f"the body ended {left:,} bytes before what is wanted")
            left -= count

    def _ask(self, run: _Run, fetcher: _Fetcher, asked: Span, etag: str | None) -> Reply:
        """An answer with status 200 or 206."""
        address = self._address
        url, headers = (address, {}) if address else self._source.request()
        if not self._single:
            headers["Range"] = f"bytes={asked.position}-{asked.end - 1}"
        if etag is not None and can_pin(etag):
            headers.update(self._source.pin(etag))
        reply = self._send(run, fetcher, "GET", url, headers)
        try:
            if reply.status in (400, 403) and origin_of(reply.url) != origin_of(self._source.request()[0]):
                self._drop_address(reply, is_fresh=address is None)
            check_status(reply, self._source)
        except BaseException:
            fetcher.connection.close()
            raise
        with self._changed:
            self._fresh_refused = 0
            # The storage's address is used again, but not one on the source's own host, which may want its token.
            if reply.redirects and origin_of(reply.url) != origin_of(url):
                self._address = reply.url
        return reply

    def _drop_address(self, reply: Reply, *, is_fresh: bool) -> None:
        """Signatures expire: raise Again to ask for a new address, unless new ones are refused too."""
        with self._changed:
            if self._address == reply.url:
                self._address = None
            if is_fresh:
                self._fresh_refused += 1
            if self._fresh_refused <= 1:
                raise Again(f"the storage answered {reply.status}: its address may have expired", delay=0.0)

    def _send(self, run: _Run, fetcher: _Fetcher, method: str, url: str, headers: Headers) -> Reply:
        timeout = min(self._policy.stall, max(0.1, run.deadline.remaining()))
        return fetcher.connection.send(method, url, headers, timeout)

    def _receive(self, run: _Run, fetcher: _Fetcher, reply: Reply, span: Span) -> None:
        part, ranges = self._part, self._ranges
        assert part is not None
        assert ranges is not None
        recorded = span.position
        try:
            while span.remaining:
                count = reply.read_into(fetcher.buffer[: min(span.remaining, BUFFER_BYTES)])
                if count == 0:
                    raise Again(f"the body ended {span.remaining:,} bytes early")
                self._check(run)
                write_at(part.fd, fetcher.buffer[:count], span.position)
                fetcher.received += count
                with self._changed:
                    prefix = ranges.prefix
                    ranges.arrived(span, count)
                    self._received += count
                    self._meter.add(count)
                    if ranges.prefix > prefix:
                        self._changed.notify_all()
                if span.position - recorded >= JOURNAL_BYTES:
                    part.record(recorded, span.position)
                    recorded = span.position
        finally:
            if span.position > recorded:
                part.record(recorded, span.position)

    # Close behind.

    def _wait_prefix(self, run: _Run, bytes_: int) -> int:
        """Bytes that are here without a gap from the start, once they are `bytes_` or all."""
        with self._changed:
            assert self._ranges is not None
            while (prefix := self._ranges.prefix) < min(bytes_, self._ranges.size):
                self._check(run)
                self._changed.wait(max(0.0, min(run.deadline.remaining(), threading.TIMEOUT_MAX)))
            return prefix

    def _follow(self, run: _Run) -> None:
        """Hash in file order, from the page cache, what has just been written there."""
        part = self._part
        assert part is not None
        if self._expected is None and part.version.digest is None:
            self._told_digest = self._told_digest or self._ask_digest(run)
        buffer = memoryview(bytearray(MIB))
        while self._hashed < part.version.size:
            prefix = self._wait_prefix(run, self._hashed + MIB)
            while self._hashed < prefix:
                self._check(run)
                count = os.preadv(part.fd, [buffer[: min(MIB, prefix - self._hashed)]], self._hashed)
                self._hash.update(buffer[:count])
                self._hashed += count

    def _ask_digest(self, run: _Run) -> str | None:
        try:
            with self._fetcher(run) as fetcher:
                return self._source.ask_digest(lambda *request: self._send(run, fetcher, *request))
        except (OSError, http.client.HTTPException, FetchRefused) as error:
            logger.info("%s: its digest cannot be asked for: %s", self._source.shown, error)
            return None

    def _read_metadata(self, run: _Run) -> None:
        """Find where the engine's first reading ends: it may begin once the bytes before that are here."""
        part = self._part
        assert part is not None
        fd = part.fd

        def read(position: int, least: int, most: int) -> bytes:
            prefix = self._wait_prefix(run, position + least)
            return os.pread(fd, min(most, prefix - position), position)

        if self._data_start is None:
            layout = read_layout(read, part.version.size, self._source.shown)
            with self._changed:
                self._data_start = layout.data_start
                self._changed.notify_all()

    # The end.

    def _finish(self) -> None:
        """All bytes are here and hashed: are they the right ones?"""
        assert self._version is not None
        actual = self._hash.hexdigest()
        expected = self._expected or self._version.digest or self._told_digest
        if expected is None:
            logger.warning(
                "%s: nobody says its SHA-256, so its content could not be verified (it is %s; set MODEL_SHA256)",
                self._source.shown,
                actual,
            )
        elif actual != expected:
            raise _Spoiled(
                f"{self._source.shown}: the SHA-256 of what arrived is {actual}, expected {expected}. It was deleted.",
                hint="Check MODEL_SHA256 if it is set; else the source, or something on the way to it, is damaged.",
            )
        self._digest = actual
        self._whole = True
        self._changed.notify_all()

    def _keep(self, run: _Run) -> None:
        assert self._part is not None
        assert self._digest is not None
        try:
            self._part.keep(self._digest)
        except FetchFailed as error:
            logger.warning("%s", error.message)
            raise
        with self._changed:
            self._kept = True
            self._changed.notify_all()


def write_at(fd: int, data: memoryview, position: int) -> None:
    """Raises _Spoiled where the disk is full: an OSError would be taken for the network's."""
    try:
        while data:
            count = os.pwrite(fd, data, position)
            data, position = data[count:], position + count
    except OSError as error:
        refused = cannot_write(error, os.path.dirname(os.readlink(fd_path(fd))), position + len(data))
        raise _Spoiled(refused.message, hint=refused.hint) from error
