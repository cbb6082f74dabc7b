"""A model that is on this machine already."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from llamafn.deadline import Deadline
from llamafn.errors import DeadlinePassed, ModelUnavailable
from llamafn.fetch.gguf import check_gguf
from llamafn.fetch.progress import Progress


def file_digest(path: str, check: Callable[[], None]) -> str:
    """The SHA-256 of a file, at 1 to 2 GB/s. `check` is called often, and raises to end it. Raises OSError."""
    import hashlib

    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            check()
    return digest.hexdigest()


class _Closed(Exception):
    pass


class LocalFile:
    """Used where it lies. If a digest is expected, it is compared while the engine loads.

    `digest` may be given where it is known already.
    """

    def __init__(self, path: str, *, digest: str | None = None, expected: str | None = None) -> None:
        check_gguf(path)
        self.path = path
        self.digest = digest
        self._size = os.stat(path).st_size
        self._error: ModelUnavailable | None = None
        self._closed = False
        self._checking: threading.Thread | None = None
        if expected is not None and expected != digest:
            self._checking = threading.Thread(target=self._check, args=(expected,), name="fetch-check", daemon=True)
            self._checking.start()

    def wait_loadable(self, deadline: Deadline) -> None:
        pass

    def wait_whole(self, deadline: Deadline) -> None:
        if self._checking is not None:
            self._checking.join(min(max(0.0, deadline.remaining()), threading.TIMEOUT_MAX))
            if self._checking.is_alive():
                raise DeadlinePassed(
                    "The request's time ran out while the model's SHA-256 was being computed.",
                    hint="Try again: the computation goes on.",
                    retry_after=1,
                )
        if self._error is not None:
            raise self._error.with_traceback(None)

    wait_kept = wait_whole

    def progress(self) -> Progress:
        return Progress(self._size, self._size, None, 0.0)

    def close(self) -> None:
        self._closed = True
        if self._checking is not None:
            self._checking.join()

    def _check_open(self) -> None:
        if self._closed:
            raise _Closed

    def _check(self, expected: str) -> None:
        try:
            actual = file_digest(self.path, self._check_open)
        except _Closed:
            return
        except OSError as error:
            self._error = ModelUnavailable(f"The model {self.path!r} cannot be read: {error.strerror}.")
            return
        if actual == expected:
            self.digest = actual
        else:
            self._error = ModelUnavailable(
                f"The SHA-256 of {self.path!r} is {actual}, but MODEL_SHA256 is {expected}. "
                "The file was not fetched by this program, so it is left as it is.",
                hint="Put the right file there, correct MODEL_SHA256, or delete the file to have it fetched.",
            )
