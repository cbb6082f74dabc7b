"""Prompt snapshots: the KV cache after a fixed prefix, read once and loaded ever after.

Reading a system prompt of 1,100 tokens takes seconds on two CPUs; loading what llama.cpp knew after reading it takes
milliseconds. A snapshot is one file, named by everything that its content depends on. One that is cut, damaged or of
another model is not trusted but made again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llamafn.deadline import Deadline
from llamafn.engine.bindings import release
from llamafn.engine.context import BATCH_TOKENS, FLASH_ATTENTION

log = logging.getLogger("llamafn")

# A shorter prefix is read sooner than a file is found.
SHORTEST_PREFIX = 32
MAX_SNAPSHOTS = 16
MAX_BYTES = 128 << 20
SUFFIX = ".snapshot"
UNFINISHED = ".unfinished-snapshot"

# A shorter prefix is read sooner than another machine is asked.
SHORTEST_SHARED_PREFIX = 128
# How long a request may wait for a remote store, and the time below which it is not asked at all.
REMOTE_SECONDS = 5.0
LEAST_REMOTE_SECONDS = 0.5
# Prefixes to remember: callers whose every system prompt is new must not fill the memory.
_MAX_REMEMBERED = 1024

_HEADER = struct.Struct("<8s32sIQ")  # magic, key, CRC-32 of the state, its length in bytes
_MAGIC = b"llamafn1"
# How much of a model its fingerprint looks at: the beginning, where the metadata is, and pieces of the rest.
_FINGERPRINT_BEGINNING = 1 << 20
_FINGERPRINT_PIECES = 1024
_PIECE_BYTES = 256


def fingerprint(*paths: str) -> str:
    """SHA-256 of each file's size, first MiB and 1,024 pieces spread over it, in 2 ms.

    It tells models apart, and a model from a finetune of it; not two that differ in a few places only. The digest of
    the whole would, for a second of every cold start.
    """
    digest = hashlib.sha256()
    for path in paths:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            digest.update(size.to_bytes(8, "little"))
            digest.update(os.pread(file, _FINGERPRINT_BEGINNING, 0))
            for number in range(_FINGERPRINT_PIECES):
                place = max(0, size - _PIECE_BYTES) * number // (_FINGERPRINT_PIECES - 1)
                digest.update(os.pread(file, _PIECE_BYTES, place))
        finally:
            os.close(file)
    return digest.hexdigest()


class Snapshot:
    """A snapshot's state, mapped and checked. Close it once it is loaded."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self._bytes = (ctypes.c_char * len(mapped)).from_buffer(mapped)

    @property
    def address(self) -> int:
        return ctypes.addressof(self._bytes) + _HEADER.size

    @property
    def length(self) -> int:
        return len(self._mapped) - _HEADER.size

    def close(self) -> None:
        del self._bytes
        self._mapped.close()


class RemoteStore(Protocol):
    """Where instances share their snapshots. Neither method raises: it logs why there is nothing to be had."""

    def get(self, name: str, *, most_bytes: int, seconds: float) -> bytearray | None:
        """The object of that name as it is, not checked; None if it is not had in so many seconds."""

    def put(self, name: str, data: bytes, *, seconds: float) -> None:
        """Store an object whole, or not at all."""


class _Kept(NamedTuple):
    path: str
    bytes: int
    used_at: float


class SnapshotStore:
    """Snapshots of one model under one set of context parameters, in directories.

    All `directories` are looked through; the first that can be written to is kept within bounds, the least recently
    used out first. A `remote` store brings there what other instances have read, and gets what this one reads.
    """

    def __init__(
        self,
        model_paths: Sequence[str],
        n_ctx: int,
        directories: Sequence[str],
        parallel: int = 1,
        remote: RemoteStore | None = None,
    ) -> None:
        self._model_paths = model_paths
        self._n_ctx = n_ctx
        self._parallel = parallel
        self._directories = directories
        self._remote = remote
        self._seen: set[bytes] = set()
        self._too_large: set[bytes] = set()
        self._distrusted: set[str] = set()  # paths of what is wrong, and cannot be removed
        self._asked: dict[bytes, threading.Event] = {}  # prefixes that the remote store was asked for; set once it was
        self._unshared: set[bytes] = set()  # saved here, and not yet sent there
        self._writable = True

    def find(self, prefix: Sequence[int]) -> Snapshot | None:
        """The snapshot of exactly these tokens, checked; None if there is none that can be trusted."""
        if not self._has_name(prefix):
            return None
        key = self._key(prefix)
        for directory in self._directories:
            path = self._path(directory, key)
            try:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                problem = _problem(mapped, key)
            except OSError:
                continue
            except ValueError:  # mmap's word for it
                problem = "it is empty"
            with contextlib.suppress(OSError):  # a shipped one may be read-only
                if problem is None:
                    os.utime(path)  # used just now
                else:
                    self._distrusted.add(path)
                    os.unlink(path)
            if problem is None:
                return Snapshot(mapped)
            log.warning("The snapshot %s is not trusted and will be made again: %s.", path, problem)
        return None

    def wants(self, prefix: Sequence[int], *, keep: bool) -> bool:
        """Whether to save a prefix that is not saved yet: one to `keep` at once, another once it was `note`d."""
        if not self._writable or not self._has_name(prefix):
            return False
        key = self._key(prefix)
        return (keep or key in self._seen) and key not in self._too_large and self.path_of(prefix) is None

    def give_up(self, prefix: Sequence[int]) -> None:
        """The state after these tokens is too large to be kept."""
        if len(self._too_large) < _MAX_REMEMBERED:
            self._too_large.add(self._key(prefix))
            log.info("No snapshot of %d tokens is kept: it would have more than %d MB.", len(prefix), MAX_BYTES >> 20)

    def note(self, prefix: Sequence[int]) -> None:
        """A prefix was read: who comes with it again wants it saved."""
        if len(self._seen) >= _MAX_REMEMBERED:
            self._seen.clear()
        if self._has_name(prefix):
            self._seen.add(self._key(prefix))

    def refuse(self, prefix: Sequence[int]) -> None:
        """llama.cpp does not take the snapshot of these tokens: away with it, so that it is made again."""
        path = self.path_of(prefix)
        if path is not None:
            log.warning("llama.cpp does not take the snapshot %s; it will be made again.", path)
            self._distrusted.add(path)
            with contextlib.suppress(OSError):
                os.unlink(path)

    def path_of(self, prefix: Sequence[int]) -> str | None:
        """Where the snapshot of these tokens is, if it was not found to be wrong; None if there is none."""
        key = self._key(prefix)
        paths = (self._path(directory, key) for directory in self._directories)
        return next((path for path in paths if path not in self._distrusted and os.path.exists(path)), None)

    def save(self, prefix: Sequence[int], state: bytearray) -> str | None:
        """Write a snapshot, whole or not at all. Returns its path; None if there is no place for it."""
        if not 0 < len(state) <= MAX_BYTES:
            return None
        key = self._key(prefix)
        path = self._write(key, _HEADER.pack(_MAGIC, key, zlib.crc32(state), len(state)), state)
        if path is not None:
            self._seen.discard(key)
            if self._remote is not None and len(prefix) >= SHORTEST_SHARED_PREFIX:
                self._unshared.add(key)
            log.info("Kept a snapshot of %d tokens, %.1f MB: %s", len(prefix), len(state) / 1e6, path)
        return path

    def may_be_remote(self, prefix: Sequence[int]) -> bool:
        """Whether `fetch` could bring what is not here. It asks once for each prefix."""
        if self._remote is None or len(prefix) < SHORTEST_SHARED_PREFIX or not self._writable:
            return False
        if not self._has_name(prefix):
            return False
        asked = self._asked.get(self._key(prefix))
        return (asked is None or not asked.is_set()) and self.path_of(prefix) is None

    def fetch(self, prefix: Sequence[int], deadline: Deadline) -> None:
        """Bring the snapshot of these tokens from the remote store, if that has it, to where `find` looks.

        Takes a few seconds at most, and never more than half of the time left: the prompt may have to be read after
        all. Who comes while another thread fetches the same waits for that.
        """
        seconds = min(REMOTE_SECONDS, deadline.remaining() / 2)
        if self._remote is None or seconds < LEAST_REMOTE_SECONDS:
            return
        key = self._key(prefix)
        if len(self._asked) >= _MAX_REMEMBERED:
            self._asked.clear()
        mine = threading.Event()
        asked = self._asked.setdefault(key, mine)
        if asked is not mine:
            asked.wait(seconds)
            return
        try:
            name = key.hex() + SUFFIX
            data = self._remote.get(name, most_bytes=MAX_BYTES, seconds=seconds)
            problem = None if data is None else _problem(data, key)
            if problem is not None:
                log.warning("The snapshot %s that was fetched is not trusted: %s.", name, problem)
            elif data is not None:
                path = self._write(key, data)
                log.info("Fetched a snapshot of %d tokens, %.1f MB: %s", len(prefix), len(data) / 1e6, path)
        finally:
            asked.set()

    def share(self, prefix: Sequence[int], deadline: Deadline) -> None:
        """Send the snapshot of these tokens to the remote store, if it was saved here: once, when there is time."""
        seconds = min(REMOTE_SECONDS, deadline.remaining())
        if self._remote is None or not self._unshared or seconds < LEAST_REMOTE_SECONDS:
            return
        key = self._key(prefix)
        try:
            self._unshared.remove(key)
        except KeyError:
            return
        path = self.path_of(prefix)
        if path is None:  # others were used more recently
            return
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            log.warning("The snapshot %s cannot be read: %s.", path, error.strerror)
            return
        self._remote.put(os.path.basename(path), data, seconds=seconds)

    def _write(self, key: bytes, *parts: bytes | bytearray) -> str | None:
        """Write a snapshot's file where there is a place for it; its path."""
        for directory in self._directories:
            path = self._path(directory, key)
            try:
                os.makedirs(directory, exist_ok=True)
                _make_room(directory, sum(map(len, parts)))
                _write(path, *parts)
                self._distrusted.discard(path)
            except OSError as error:
                log.info("No snapshot can be kept in %s: %s.", directory, error.strerror)
                continue
            return path
        self._writable = False
        log.warning("No prompt snapshots are kept: none of %s can be written to.", ", ".join(self._directories))
        return None

    @staticmethod
    def _path(directory: str, key: bytes) -> str:
        return os.path.join(directory, key.hex() + SUFFIX)

    def _has_name(self, prefix: Sequence[int]) -> bool:
        """Whether these tokens are worth a snapshot, and one of this model can be told from another's."""
        if len(prefix) < SHORTEST_PREFIX:
            return False
        try:
            return self._identity != b""
        except OSError as error:
            log.warning("No prompt snapshots: the model's file cannot be read any more: %s.", error.strerror)
            return False

    def _key(self, prefix: Sequence[int]) -> bytes:
        return hashlib.sha256(self._identity + array("i", prefix).tobytes()).digest()

    @functools.cached_property
    def _identity(self) -> bytes:
        """What a snapshot depends on beside its tokens. Asked for when the model's file is whole."""
        model = fingerprint(*self._model_paths)
        context = f"n_ctx={self._n_ctx} sequences={self._parallel} batch={BATCH_TOKENS} kv=f16 fa={FLASH_ATTENTION}"
        return f"{model} llama.cpp {release()} {context} ".encode()


def _write(path: str, *parts: bytes | bytearray) -> None:
    """Write a file under another name and give it its own when it is whole. Raises OSError, leaving nothing."""
    unfinished = f"{path}.{os.getpid()}-{os.urandom(4).hex()}{UNFINISHED}"
    try:
        with open(unfinished, "xb") as file:
            for part in parts:
                file.write(part)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise


def _problem(found: mmap.mmap | bytearray, key: bytes) -> str | None:
    if len(found) < _HEADER.size:
        return "it is cut"
    magic, its_key, checksum, length = _HEADER.unpack_from(found)
    if magic != _MAGIC:
        return "it is no snapshot"
    if its_key != key:
        return "it is of another prompt or model"
    if len(found) != _HEADER.size + length:
        return "it is cut"
    with memoryview(found) as whole, whole[_HEADER.size :] as state:
        return None if zlib.crc32(state) == checksum else "its checksum is wrong"


def _make_room(directory: str, length: int) -> None:
    """Remove the least recently used until one of `length` bytes more is within bounds."""
    kept = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                found = entry.stat()
                if entry.name.endswith(SUFFIX):
                    kept.append(_Kept(entry.path, found.st_size, found.st_mtime))
                elif entry.name.endswith(UNFINISHED) and time.time() - found.st_mtime > 60:
                    os.unlink(entry.path)  # of a process that was killed
    kept.sort(key=lambda snapshot: snapshot.used_at)
    while kept and (len(kept) >= MAX_SNAPSHOTS or sum(each.bytes for each in kept) + length > MAX_BYTES):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(kept.pop(0).path)
