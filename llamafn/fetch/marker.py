"""The marker beside a fetched model: that we wrote it, which object it is, how to see that nobody has changed it since.

`model.gguf` has `model.gguf.fetched.json`. A file without a marker is somebody else's and is never overwritten.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from typing import NamedTuple

from llamafn.errors import FetchRefused

SUFFIX = ".fetched.json"


class Marker(NamedTuple):
    """All of it is compared; times in nanoseconds since 1970, sizes in bytes."""

    model: str  # `identity_of` the URI
    size: int
    etag: str | None
    digest: str  # SHA-256 of the bytes, also where nobody said which it should be
    modified: int  # the file's, set by us to a whole second, which is all that image layers keep
    inode: int


class Kept(enum.Enum):
    """What lies at LOCAL_MODEL_PATH."""

    NOTHING = "nothing"
    GOOD = "ours, as we left it"
    STALE = "ours, but changed or cut, or another model than the one wanted"
    DOUBTFUL = "ours and of the right size, but touched: only its digest can tell"
    FOREIGN = "not ours"


def read_marker(path: str) -> Marker | None:
    """The marker of the model at `path`; None if there is none that can be read."""
    try:
        with open(path + SUFFIX, encoding="utf-8") as file:
            marker = Marker(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    return marker


def write_marker(path: str, marker: Marker, temporary: str) -> None:
    """Raises OSError."""
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(marker._asdict(), file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path + SUFFIX)


def look(path: str, model: str, digest: str | None) -> tuple[Kept, Marker | None]:
    """Judge the file at `path` without reading it. `digest` is what MODEL_SHA256 says.

    Whoever puts a model of his own where ours was leaves our marker behind. So a file is only called ours, and may be
    deleted, if it is the very file that we wrote (its inode) or unchanged since.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Kept.NOTHING, None
    marker = read_marker(path)
    if marker is None:
        return Kept.FOREIGN, None
    untouched = (found.st_size, found.st_mtime_ns) == (marker.size, marker.modified)
    if not untouched:
        if found.st_ino != marker.inode:
            return Kept.FOREIGN, None
        if found.st_size == marker.size and _is_wanted(marker, model, digest):
            return Kept.DOUBTFUL, marker
        return Kept.STALE, marker
    return (Kept.GOOD if _is_wanted(marker, model, digest) else Kept.STALE), marker


def _is_wanted(marker: Marker, model: str, digest: str | None) -> bool:
    # A digest names the bytes, whatever their address is.
    return marker.model == model if digest is None else marker.digest == digest


def renew(path: str, marker: Marker) -> None:
    """The bytes were found to be right: believe the file as it is now. A read-only disk keeps the old marker."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        os.utime(path, (found.st_atime, found.st_mtime // 1))
        modified = os.stat(path).st_mtime_ns
        renewed = marker._replace(modified=modified, inode=found.st_ino)
        write_marker(path, renewed, f"{path}.{os.getpid()}{SUFFIX}")


def remove(path: str) -> None:
    """Delete a file of ours, then its marker: the other way round a kill between the two would leave a stranger's file.

    Raises FetchRefused.
    """
    try:
        os.unlink(path)
        os.unlink(path + SUFFIX)
    except OSError as error:
        raise FetchRefused(
            f"{path!r} was fetched before, but has been changed since or is another model, and cannot be deleted: "
            f"{error.strerror}.",
            hint="Delete it, or set LOCAL_MODEL_PATH to another file.",
        ) from error
