"""From a model's URI to a whole, checked GGUF: `open_model`.

Importing this is cheap; an HTTP client, hashing and the sources are imported when something has to be fetched.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING, Protocol

from llamafn.deadline import Deadline
from llamafn.errors import FetchFailed, FetchRefused, ModelUnavailable
from llamafn.settings import Settings, file_name

if TYPE_CHECKING:
    from llamafn.fetch.progress import Progress

__all__ = ["ModelFile", "is_here", "open_model", "place_of"]

# A refusal (404, a wrong digest) is repeated to other requests for so long without asking again:
# a burst of requests must not fetch the same wrong 400 MB once for each.
REFUSAL_SECONDS = 30.0

# stories-00001-of-00003.gguf: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class OneFile(Protocol):
    """A file of a model, being fetched or here. See `ModelFile` for what its methods promise."""

    @property
    def path(self) -> str: ...
    @property
    def digest(self) -> str | None: ...
    def wait_loadable(self, deadline: Deadline) -> None: ...
    def wait_whole(self, deadline: Deadline) -> None: ...
    def wait_kept(self, deadline: Deadline) -> None: ...
    def progress(self) -> Progress: ...
    def close(self) -> None: ...


class ModelFile:
    """A model's file, or files where it is split; whole already, or being fetched in the background.

    A wait that fails for a passing reason (`FetchFailed`, `DeadlinePassed`) may be repeated: it goes on with what has
    arrived. After any other error nothing of the model is left, and a new `open_model` is needed.
    """

    def __init__(self, parts: list[OneFile]) -> None:
        self._parts = parts
        self._process = os.getpid()
        self._refusal: ModelUnavailable | None = None
        self._refused_at = 0.0  # on the monotonic clock
        self.closed = False

    @property
    def paths(self) -> list[str]:
        """What llama.cpp maps, one path for each part; valid from `wait_loadable` to `close`.

        They may be of the form /proc/self/fd/N, which lead to the file under whatever name it has at the time.
        """
        return [part.path for part in self._parts]

    @property
    def digest(self) -> str | None:
        """SHA-256 of the bytes, 64 hexadecimal digits; of the parts' digests in order if it is split.

        None until it is whole, and for a local file that nobody has hashed.
        """
        digests = [part.digest for part in self._parts]
        if len(digests) == 1 or None in digests:
            return digests[0] if len(digests) == 1 else None
        import hashlib

        return hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()

    @property
    def is_alive(self) -> bool:
        """False once it is closed, and in a fork of the process that was still fetching it: no thread is there."""
        return not self.closed and (self._process == os.getpid() or self.digest is not None)

    def wait_loadable(self, deadline: Deadline) -> None:
        """Until header and vocabulary are there: llama.cpp may then map the file, and decode nothing yet.

        Raises:
            DeadlinePassed, FetchFailed, FetchRefused, ModelUnavailable.
        """
        self._wait("wait_loadable", deadline)

    def wait_whole(self, deadline: Deadline) -> None:
        """Until every byte is there and checked. After an error, throw away what was loaded.

        Raises:
            DeadlinePassed: only this is no reason to throw it away.
            FetchFailed, FetchRefused, ModelUnavailable.
        """
        self._wait("wait_whole", deadline)

    def wait_kept(self, deadline: Deadline) -> None:
        """Until the model is at LOCAL_MODEL_PATH, synced to its disk. Raises as `wait_whole`."""
        self._wait("wait_kept", deadline)

    def progress(self) -> Progress:
        from llamafn.fetch.progress import Progress

        each = [part.progress() for part in self._parts]
        done = sum(one.done for one in each)
        totals = [one.total for one in each if one.total is not None]
        if len(totals) < len(each):
            return Progress(done, None, None, None)
        rates = [one.rate for one in each if one.rate is not None]
        rate = sum(rates) if rates else None
        left = sum(totals) - done
        return Progress(done, sum(totals), rate, 0.0 if left == 0 else left / rate if rate else None)

    def close(self) -> None:
        """End what is under way, join its threads, close what is open. What llama.cpp has mapped stays mapped."""
        self.closed = True
        for part in self._parts:
            part.close()

    def _wait(self, what: str, deadline: Deadline) -> None:
        try:
            for part in self._parts:
                getattr(part, what)(deadline)
        except FetchFailed:
            raise
        except ModelUnavailable as error:
            if self._refusal is None:
                self._refusal, self._refused_at = error, time.monotonic()
            raise

    def is_refused(self) -> bool:
        """True once a wait has ended in a final error; for the first seconds that error is raised instead."""
        if self._refusal is not None and time.monotonic() - self._refused_at < REFUSAL_SECONDS:
            raise self._refusal.with_traceback(None)
        return self._refusal is not None


_open: dict[str, ModelFile] = {}  # by the first part's place, so that no file is fetched twice at once
_open_lock = threading.Lock()


def open_model(settings: Settings, deadline: Deadline) -> ModelFile:
    """The model that `settings` name. What is not here begins to arrive in the background, and this returns at once.

    While it is fetched, and until `close`, the same settings give the same object.

    Raises:
        ModelUnavailable: a local file that is missing or is not a GGUF; a refusal of the last seconds.
        FetchRefused: a URI that names nothing.
        DeadlinePassed: a local file had to be hashed, and there was no time.
    """
    place = "memory" if settings.model_in_memory else settings.local_model_path
    key = f"{settings.model} {settings.model_sha256} {place}"
    with _open_lock:
        known = _open.get(key)
        if known is not None and known.is_alive:
            if not known.is_refused():
                return known
            known.close()
        opened = _open[key] = ModelFile(_open_parts(settings, deadline))
        return opened


def place_of(settings: Settings) -> str:
    """The path of the model's (first) file, there or to be."""
    from llamafn.fetch.sources.package import local_path

    return local_path(settings.model) or settings.local_model_path


def is_here(settings: Settings) -> bool:
    """Whether the model is on this machine, whole as far as can be told without reading it; opens nothing.

    Raises:
        FetchRefused: a URI that names nothing.
    """
    from llamafn.fetch.marker import Kept, look
    from llamafn.fetch.sources import identity_of
    from llamafn.fetch.sources.package import local_path

    if local_path(settings.model) is not None:
        return True
    if settings.model_in_memory:
        return False
    digest = settings.model_sha256[0] if settings.model_sha256 else None
    found, _ = look(settings.local_model_path, identity_of(settings.model, settings), digest)
    return found in (Kept.GOOD, Kept.FOREIGN)


def _open_parts(settings: Settings, deadline: Deadline) -> list[OneFile]:
    uris = _split(settings.model, file_name(settings.model))
    paths = _split(settings.local_model_path, settings.local_model_path)
    digests: tuple[str | None, ...] = settings.model_sha256 or (None,) * len(uris)
    if len(digests) != len(uris):
        raise FetchRefused(
            f"MODEL_SHA256 has {len(digests)} digests for a model of {len(uris)} file(s).",
            hint="Give one for each part, in order, with commas between them.",
        )
    if len(paths) != len(uris):
        directory, name = os.path.split(settings.local_model_path)
        raise FetchRefused(
            f"MODEL has {len(uris)} file(s), but LOCAL_MODEL_PATH names {len(paths)}: {name!r}.",
            hint=f"A split model's first part is called like {os.path.join(directory, file_name(settings.model))!r}.",
        )
    connections = max(1, settings.fetch_connections // len(uris))
    opened: list[OneFile] = []
    try:
        for uri, path, digest in zip(uris, paths, digests, strict=True):
            opened.append(_open_one(settings, uri, path, digest, connections, deadline))
    except BaseException:
        for part in opened:
            part.close()
        raise
    return opened


def _split(place: str, name: str) -> list[str]:
    """Every part's place, of the place of the first; just the one if the name is not that of a part."""
    match = _SPLIT.search(name)
    if match is None or int(match[2]) < 2:
        return [place]
    if int(match[1]) != 1:
        raise FetchRefused(f"{name!r} is part {int(match[1])} of a split model: name the first part.")
    return [place.replace(match[0], f"-{number:05}-of-{match[2]}.gguf") for number in range(1, int(match[2]) + 1)]


def _open_one(
    settings: Settings, uri: str, path: str, digest: str | None, connections: int, deadline: Deadline
) -> OneFile:
    from llamafn.fetch.local import LocalFile, file_digest
    from llamafn.fetch.marker import Kept, look, remove, renew
    from llamafn.fetch.sources import identity_of
    from llamafn.fetch.sources.package import local_path

    local = local_path(uri)
    if local is not None:
        return LocalFile(local, expected=digest)
    model = identity_of(uri, settings)
    found, marker = look(path, model, digest)
    if found is Kept.FOREIGN:
        return LocalFile(path, expected=digest)
    if found is Kept.DOUBTFUL and marker is not None:
        actual = file_digest(path, lambda: deadline.check("the model's SHA-256 was being computed"))
        if actual == marker.digest:
            renew(path, marker)
            found = Kept.GOOD
    if found is Kept.GOOD and marker is not None:
        _sweep_beside(path)
        return LocalFile(path, digest=marker.digest, expected=digest)
    if found is not Kept.NOTHING:
        # First, since there may be no room for two.
        remove(path)
    return _download(settings, uri, model, path, digest, connections)


def _sweep_beside(path: str) -> None:
    """Delete the parts of processes that were killed while another one was faster."""
    directory, name = os.path.split(os.path.abspath(path))
    if any(entry.startswith(f".{name}.") and ".part" in entry for entry in os.listdir(directory)):
        from llamafn.fetch.part import sweep

        sweep(os.path.join(directory, name))


def _download(settings: Settings, uri: str, model: str, path: str, digest: str | None, connections: int) -> OneFile:
    from llamafn.fetch.download import Download
    from llamafn.fetch.part import DiskPart, MemoryPart
    from llamafn.fetch.retry import Policy
    from llamafn.fetch.sources import source_of

    policy = Policy(connections, settings.fetch_stall_seconds, settings.fetch_deadline_seconds, settings.allow_http)
    source = source_of(uri, settings)
    if settings.model_in_memory:
        name = file_name(uri)
        return Download(source, policy, digest, lambda version: MemoryPart(name, version), lambda: None)
    path = os.path.abspath(path)
    return Download(
        source,
        policy,
        digest,
        lambda version: DiskPart.create(path, model, version),
        lambda: DiskPart.adopt(path, model, digest),
    )
