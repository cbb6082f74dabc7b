"""Where the bytes of a download go: a part file beside its final place, with a journal; or memory.

`.model.gguf.<8 hex>.part` has the object's full length from the start, its `.journal` says which bytes are good.
Names are unique, so two processes never share a part. A lock (flock, gone with its process, however that ends) tells a
part in use from an orphan, which the next process takes over or deletes. Should the lock lie, as on some network file
systems, two processes write the same bytes of the same version to the same places, or one misses its part at the end:
that costs bandwidth and never a wrong file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import time
from typing import Protocol

from llamafn.errors import FetchFailed, FetchRefused
from llamafn.fetch.marker import SUFFIX, Marker, write_marker
from llamafn.fetch.sources import ObjectVersion

JOURNAL = ".journal"
_FD_DIRECTORY = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


class NoRoom(FetchRefused):
    """The disk is full, or cannot be written."""


class Part(Protocol):
    """An open file of the object's full length; `fd` stays open until `close`."""

    fd: int
    version: ObjectVersion
    good: list[tuple[int, int]]  # bytes that were there when it was opened

    def record(self, start: int, end: int) -> None:
        """Say that these bytes have been written. Raises NoRoom."""

    def keep(self, digest: str) -> None:
        """Put the whole file where it belongs."""

    def discard(self) -> None:
        """Leave nothing behind. The file is still open for whoever has mapped it."""

    def close(self) -> None:
        """Leave it for the next try."""


def fd_path(fd: int) -> str:
    """A path by which llama.cpp opens the file, whatever its name is or becomes."""
    return f"{_FD_DIRECTORY}/{fd}"


class MemoryPart:
    """Memory of the kernel's, without a name: there is nothing to resume, nothing to keep, nothing to sweep."""

    def __init__(self, name: str, version: ObjectVersion) -> None:
        self.version = version
        self.good: list[tuple[int, int]] = []
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, version.size)

    def record(self, start: int, end: int) -> None:
        pass

    def keep(self, digest: str) -> None:
        pass

    def discard(self) -> None:
        pass  # it goes with its last mapping; to cut it under one would kill the process

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DiskPart:
    """Made with `create` or `adopt`."""

    def __init__(self, target: str, model: str, path: str, fd: int, version: ObjectVersion) -> None:
        self._target = target
        self._model = model
        self._path = path
        self._journal = -1
        self.fd = fd
        self.version = version
        self.good: list[tuple[int, int]] = []

    @classmethod
    def create(cls, target: str, model: str, version: ObjectVersion) -> DiskPart:
        """A new part with room for all bytes.

        Raises NoRoom.
        """
        directory, name = os.path.split(target)
        while True:
            path = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.part")
            try:
                os.makedirs(directory or ".", exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise _cannot_write(error, directory, version.size) from error
            part = cls(target, model, path, fd, version)
            # Another process may have taken it for an orphan before it was locked.
            if _lock(fd) and part._is_named():
                break
            part.close()
        try:
            _reserve(part.fd, version.size)
            part._begin_journal()
        except OSError as error:
            part.discard()
            part.close()
            raise _cannot_write(error, directory, version.size) from error
        return part

    @classmethod
    def adopt(cls, target: str, model: str, digest: str | None) -> DiskPart | None:
        """The fullest part that another process, now gone, left of the same model; the other orphans are deleted."""
        directory, name = os.path.split(target)
        best: DiskPart | None = None
        for entry in _entries(directory, name):
            found = cls._open_orphan(target, model, os.path.join(directory, entry))
            if found is None:
                continue
            usable = found.good and (digest is None or found.version.digest in (None, digest))
            rivals = [part for part in (best, found if usable else None) if part is not None]
            best = max(rivals, key=lambda part: sum(end - start for start, end in part.good), default=None)
            for loser in {found, *rivals} - {best}:
                loser.discard()
                loser.close()
        if best is not None:
            best._journal = os.open(best._path + JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return best

    @classmethod
    def _open_orphan(cls, target: str, model: str, path: str) -> DiskPart | None:
        """An orphan, locked; with nothing good if its journal is of no use. None if somebody has it, or it has gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        part = cls(target, model, path, fd, ObjectVersion(os.fstat(fd).st_size, None, None, None))
        if not _lock(fd) or not part._is_named():
            part.close()
            return None
        part._read_journal()
        return part

    def record(self, start: int, end: int) -> None:
        try:
            os.write(self._journal, b"%d %d\n" % (start, end))
        except OSError as error:
            raise _cannot_write(error, os.path.dirname(self._target), end) from error

    def keep(self, digest: str) -> None:
        """The marker goes first: if we are killed between the two, the part is whole and the next process keeps it.

        Raises FetchFailed.
        """
        modified = int(self.version.modified or time.time())
        try:
            os.fsync(self.fd)
            os.utime(self.fd, (modified, modified))
            if os.path.lexists(self._target):
                # Another process was faster, or somebody put a model there: either stays as it is.
                self.discard()
                return
            marker = Marker(
                self._model, self.version.size, self.version.etag, digest, modified * 10**9, os.fstat(self.fd).st_ino
            )
            write_marker(self._target, marker, self._path + SUFFIX)
            os.replace(self._path, self._target)
            _unlink(self._path + JOURNAL)
            _sync_directory(os.path.dirname(self._target))
        except OSError as error:
            _unlink(self._path + SUFFIX)
            raise FetchFailed(f"The model cannot be kept at {self._target!r}: {error.strerror}.") from error

    def discard(self) -> None:
        for path in (self._path, self._path + JOURNAL, self._path + SUFFIX):
            _unlink(path)

    def close(self) -> None:
        for fd in (self.fd, self._journal):
            if fd >= 0:
                os.close(fd)
        self.fd = self._journal = -1

    def _is_named(self) -> bool:
        """Whether the path still leads to this file: it may have been kept or deleted before we had the lock."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def _begin_journal(self) -> None:
        head = {"model": self._model, "boot": _boot(), **self.version._asdict()}
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._journal = os.open(self._path + JOURNAL, flags, 0o644)
        os.write(self._journal, json.dumps(head).encode() + b"\n")

    def _read_journal(self) -> None:
        try:
            with open(self._path + JOURNAL, encoding="utf-8") as file:
                lines = file.read().split("\n")[:-1]  # the last one, if it has no end, was cut by a kill
            head = json.loads(lines[0])
            model, boot = head.pop("model"), head.pop("boot")
            version = ObjectVersion(**head)
            good = [(int(start), int(end)) for start, end in (line.split() for line in lines[1:])]
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return
        # After a crash of the machine the journal may know more than the disk: then only a digest can tell.
        fits = model == self._model and version.size == self.version.size
        if fits and all(start < end <= version.size for start, end in good) and (boot == _boot() or version.digest):
            self.version = version
            self.good = good


def sweep(target: str) -> None:
    """Delete what killed processes left beside a model that is whole."""
    directory, name = os.path.split(target)
    for entry in _entries(directory, name):
        # Its journal is of no interest, so that any name for the model will do.
        orphan = DiskPart._open_orphan(target, "", os.path.join(directory, entry))
        if orphan is not None:
            orphan.discard()
            orphan.close()


def _entries(directory: str, name: str) -> list[str]:
    try:
        listed = os.listdir(directory or ".")
    except OSError:
        return []
    prefix = f".{name}."
    parts = {entry for entry in listed if entry.startswith(prefix) and entry.endswith(".part")}
    for entry in listed:
        # A journal whose part has gone.
        if entry.startswith(prefix) and entry.endswith((".part" + JOURNAL, ".part" + SUFFIX)):
            owner = entry[: entry.rindex(".part") + len(".part")]
            if owner not in parts:
                _unlink(os.path.join(directory, entry))
    return sorted(parts)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _reserve(fd: int, size: int) -> None:
    """Give the file its length, and its room on the disk where the file system can promise it.

    Not os.posix_fallocate: where the kernel cannot, as on NFS, it writes to every block.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "fallocate"):
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        while libc.fallocate(fd, 0, 0, size) != 0:
            number = ctypes.get_errno()
            if number in (errno.EOPNOTSUPP, errno.ENOSYS):
                break
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        else:
            return
    room = os.fstatvfs(fd)
    if room.f_bavail * room.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, size)


def write_at(fd: int, data: memoryview, position: int) -> None:
    """Raises NoRoom: an OSError would be taken for the network's."""
    try:
        while data:
            count = os.pwrite(fd, data, position)
            data, position = data[count:], position + count
    except OSError as error:
        raise _cannot_write(error, os.path.dirname(os.readlink(fd_path(fd))), position + len(data)) from error


def _cannot_write(error: OSError, directory: str, size: int) -> NoRoom:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said = f"There is no room for the model: {size:,} bytes in {directory!r} ({error.strerror})"
        with contextlib.suppress(OSError):
            room = os.statvfs(directory or ".")
            said += f", {room.f_bavail * room.f_frsize:,} free"
        return NoRoom(
            f"{said}.",
            hint="Give the function a larger disk (Lambda: EphemeralStorage), set LOCAL_MODEL_PATH to another one, or "
            "MODEL_IN_MEMORY=1.",
        )
    return NoRoom(
        f"The model cannot be written to {directory!r}: {error.strerror}.",
        hint="Set LOCAL_MODEL_PATH to a file in a directory that may be written, such as /tmp, or MODEL_IN_MEMORY=1.",
    )


def _sync_directory(directory: str) -> None:
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
