"""The threads of one attempt at a download: begun together, stopped together."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from llamafn.deadline import Deadline
from llamafn.errors import FetchFailed, ModelUnavailable
from llamafn.fetch.answer import Replaced
from llamafn.fetch.connection import Connection

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run has ended; whoever ended it has said why."""


class Run:
    """`changed` guards the download's state and is notified of every change in it."""

    def __init__(self, shown: str, changed: threading.Condition, seconds: float) -> None:
        self._shown = shown
        self._changed = changed
        self._seconds = seconds
        self._deadline = Deadline.after(seconds)
        self._patience = Deadline.after(0)
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self.stopped = False
        # Why, at most one of them:
        self.error: ModelUnavailable | None = None
        self.replaced: Replaced | None = None

    def begin(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Do `work` in a thread of its own; if it fails, the run stops."""
        thread = threading.Thread(target=self.guard, args=(work,), name=f"fetch-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        except Replaced as replaced:
            self.stop(replaced=replaced)
        except ModelUnavailable as error:
            self.stop(error)
        except Exception as error:
            # Whatever it is, those who wait must learn of it.
            logger.exception("Fetching %s failed unexpectedly", self._shown)
            self.stop(FetchFailed(f"{self._shown}: {type(error).__name__}: {error}"))

    def join(self) -> None:
        """Wait for all threads but the calling one."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def stop(self, error: ModelUnavailable | None = None, replaced: Replaced | None = None) -> None:
        """The first reason counts; those that follow from it do not."""
        with self._changed:
            if self.stopped:
                return
            self.stopped = True
            self.error = error
            self.replaced = replaced
            connections = list(self._connections)
            self._changed.notify_all()
        for connection in connections:
            connection.abort()

    def prolong(self) -> None:
        """Somebody waits for it: its time begins anew. (While a function is frozen, it runs down.)"""
        self._deadline = Deadline.after(self._seconds)

    @property
    def remaining(self) -> float:
        """Seconds."""
        return self._deadline.remaining()

    def check(self) -> None:
        """Raise if the run is to end."""
        if self.stopped:
            raise Stopped
        if self._deadline.has_passed():
            raise FetchFailed(
                f"{self._shown}: not whole after {self._seconds:g} s.",
                hint="Try again: what has arrived is kept. FETCH_DEADLINE_SECONDS allows more time.",
                retry_after=1,
            )

    def wait(self, most: float = threading.TIMEOUT_MAX) -> None:
        """Until something has changed, with `changed` held; at most so many seconds. Raises as `check`."""
        self.check()
        self._changed.wait(max(0.0, min(most, self.remaining, threading.TIMEOUT_MAX)))
        self.check()

    def sleep(self, seconds: float) -> None:
        moment = Deadline.after(seconds)
        with self._changed:
            while not moment.has_passed():
                self.wait(moment.remaining())

    def be_patient(self, seconds: float) -> None:
        """A server asks all connections to stay away for so long."""
        self._patience = Deadline.after(seconds)

    def sleep_while_patient(self) -> None:
        self.sleep(self._patience.remaining())

    @contextlib.contextmanager
    def connection(self, *, allow_http: bool) -> Iterator[Connection]:
        """A connection that is closed at the end, and aborted when the run stops."""
        connection = Connection(allow_http=allow_http)
        with self._changed:
            self.check()
            self._connections.append(connection)
        try:
            yield connection
        finally:
            connection.close()
