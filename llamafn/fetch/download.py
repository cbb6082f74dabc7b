"""One object, from its source to a whole and checked file.

Threads: one leads (the first request, and the end of it all) and fetches; others fetch beside it; one hashes in file
order close behind the bytes; one reads the GGUF's metadata, to know when the engine may begin. Together they are a run;
after one that failed, another goes on where it ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from llamafn.deadline import Deadline
from llamafn.errors import DeadlinePassed, FetchFailed, FetchRefused, ModelUnavailable
from llamafn.fetch.fetcher import Address, Fetcher
from llamafn.fetch.gguf import NotGGUF
from llamafn.fetch.part import NoRoom, Part, fd_path
from llamafn.fetch.progress import Meter, Progress
from llamafn.fetch.retry import AskedToWait, Policy
from llamafn.fetch.run import Run
from llamafn.fetch.sources import ObjectVersion, Source
from llamafn.fetch.transfer import Transfer

logger = logging.getLogger(__name__)

# A source that changes under every attempt is not waited for.
MOST_RESTARTS = 2
CLOSE_SECONDS = 5.0


class WrongDigest(FetchRefused):
    """All bytes arrived, and they are not the right ones."""


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
        self._run: Run | None = None
        self._lead: threading.Thread | None = None
        self._error: ModelUnavailable | None = None  # of the last run
        self._transfer: Transfer | None = None
        self._dropped: Part | None = None
        self._meter = Meter()
        self._restarts = 0
        self._told_loadable = False
        self._digest: str | None = None  # once it is whole
        self._kept = False
        self._closed = False
        with self._changed:
            self._start()

    @property
    def path(self) -> str:
        """Leads to the file under whatever name it has; valid from `wait_loadable` to `close`."""
        transfer = self._transfer
        if transfer is None:
            raise FetchFailed(f"{self._source.shown}: nothing of it is here.", retry_after=1)
        return fd_path(transfer.part.fd)

    @property
    def digest(self) -> str | None:
        return self._digest

    def wait_loadable(self, deadline: Deadline) -> None:
        self._wait(
            lambda: self._digest is not None or (self._transfer is not None and self._transfer.is_loadable), deadline
        )
        self._told_loadable = True

    def wait_whole(self, deadline: Deadline) -> None:
        self._wait(lambda: self._digest is not None, deadline)

    def wait_kept(self, deadline: Deadline) -> None:
        self._wait(lambda: self._kept, deadline)

    def progress(self) -> Progress:
        with self._changed:
            if self._transfer is None:
                return Progress(0, None, None, None)
            done, total = self._transfer.done, self._transfer.version.size
            rate = self._meter.rate()
            return Progress(done, total, rate, (total - done) / rate if rate else None)

    def close(self) -> None:
        """End what is under way; good bytes stay for the next try. A whole file is put in its place first."""
        with self._changed:
            self._closed = True
            run, lead, is_whole = self._run, self._lead, self._digest is not None
        if run is not None and lead is not None:
            if not is_whole:
                run.stop()
            lead.join(None if is_whole else CLOSE_SECONDS)
        with self._changed:
            self._close_dropped()
            # A thread that hangs in a name lookup may still hold the descriptor, so then it is left open.
            if self._run is None and self._transfer is not None:
                self._transfer.part.close()
                self._transfer = None

    def _wait(self, reached: Callable[[], bool], deadline: Deadline) -> None:
        """A run that failed for a passing reason before this call is followed by another."""
        with self._changed:
            while self._run is not None and self._run.stopped and not reached():
                self._sleep(deadline)
            if self._run is not None:
                self._run.prolong()
            elif not reached():
                self._raise_if_final()
                self._start()
            while not reached():
                if self._run is None:
                    error = self._error or FetchFailed(f"{self._source.shown}: the fetch was stopped.", retry_after=1)
                    raise error.with_traceback(None)
                self._sleep(deadline)

    def _raise_if_final(self) -> None:
        """Raise the last run's error if it makes no sense to try again now."""
        error = self._error
        if isinstance(error, AskedToWait):
            error.retry_after = error.until.remaining()
            if error.retry_after <= 0:
                return
        elif error is None or isinstance(error, FetchFailed):
            return
        raise error.with_traceback(None)

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

    def _start(self) -> None:
        if self._closed:
            raise FetchFailed(f"{self._source.shown}: the fetch was stopped.")
        self._error = None
        self._close_dropped()
        self._meter = Meter()
        self._run = run = Run(self._source.shown, self._changed, self._policy.deadline)
        self._lead = run.begin("lead", lambda: self._lead_run(run))

    def _lead_run(self, run: Run) -> None:
        run.guard(lambda: self._fetch(run))
        run.guard(lambda: self._keep(run))
        run.stop()
        run.join()
        with self._changed:
            self._run = None
            self._error = run.error
            if run.replaced is not None:
                self._start_over(str(run.replaced))
            elif isinstance(run.error, NoRoom | NotGGUF | WrongDigest):
                self._drop()
            self._changed.notify_all()

    def _fetch(self, run: Run) -> None:
        address = Address(self._source)
        with run.connection(allow_http=self._policy.allow_http) as connection:
            fetcher = Fetcher(connection, run, self._policy, address, self._meter)
            if self._transfer is None and (part := self._adopt_part()) is not None:
                self._open_transfer(part)
            if self._transfer is None:
                transfer = fetcher.begin(self._expected, lambda version: self._open_transfer(self._open_part(version)))
            else:
                transfer = self._transfer
                fetcher.go_on(transfer)
            run.begin("digest", lambda: self._hash_behind(run, transfer, address))
            run.begin("metadata", lambda: transfer.read_metadata(run, self._source.shown))
            for number in range(1, 1 if transfer.single else self._policy.connections):
                run.begin(str(number), lambda: self._fetch_beside(run, transfer, address))
            fetcher.fetch_all(transfer)
        run.join()
        run.check()
        self._accept(transfer.digest(), transfer.expected_digest)

    def _open_transfer(self, part: Part) -> Transfer:
        with self._changed:
            expected = self._expected or part.version.digest
            self._transfer = transfer = Transfer(part, expected, self._changed, self._policy.connections)
            self._changed.notify_all()
            return transfer

    def _fetch_beside(self, run: Run, transfer: Transfer, address: Address) -> None:
        with run.connection(allow_http=self._policy.allow_http) as connection:
            Fetcher(connection, run, self._policy, address, self._meter).fetch_all(transfer)

    def _hash_behind(self, run: Run, transfer: Transfer, address: Address) -> None:
        if transfer.expected_digest is None:
            with run.connection(allow_http=self._policy.allow_http) as connection:
                fetcher = Fetcher(connection, run, self._policy, address, self._meter)
                transfer.expected_digest = fetcher.ask_digest()
        transfer.hash_behind(run)

    def _accept(self, actual: str, expected: str | None) -> None:
        """All bytes are here: are they the right ones?"""
        if expected is None:
            logger.warning(
                "%s: nobody says its SHA-256, so its content could not be verified (it is %s; set MODEL_SHA256)",
                self._source.shown,
                actual,
            )
        elif actual != expected:
            raise WrongDigest(
                f"{self._source.shown}: the SHA-256 of what arrived is {actual}, expected {expected}. It was deleted.",
                hint="Check MODEL_SHA256 if it is set; else the source, or something on the way to it, is damaged.",
            )
        with self._changed:
            self._digest = actual
            self._changed.notify_all()

    def _keep(self, run: Run) -> None:
        if self._transfer is None or self._digest is None:
            return
        try:
            self._transfer.part.keep(self._digest)
        except FetchFailed as error:
            # The model can be used all the same.
            logger.warning("%s", error.message)
            raise
        with self._changed:
            self._kept = True
            self._changed.notify_all()

    def _start_over(self, reason: str) -> None:
        """The object has been replaced: begin again, but not under an engine that has loaded a part of the old one."""
        self._drop()
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

    def _drop(self) -> None:
        """Delete what is here. It stays open for a while: somebody may be about to open `path`, and must not get
        another file that happens to have the same number by then."""
        self._close_dropped()
        if self._transfer is not None:
            self._dropped, self._transfer = self._transfer.part, None
            self._dropped.discard()

    def _close_dropped(self) -> None:
        if self._dropped is not None:
            self._dropped.close()
            self._dropped = None
