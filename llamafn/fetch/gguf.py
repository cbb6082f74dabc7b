"""As much of GGUF as fetching needs: is it one, where does its metadata end, how long must it be.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from llamafn.errors import ModelUnavailable

HEADER_BYTES = 24
_READ_BYTES = 1 << 20
_STRING, _ARRAY = 8, 9
# Bytes of each value type that has a fixed size: u8 i8 u16 i16 u32 i32 f32 bool, then u64 i64 f64.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# Elements and bytes of one block of each tensor type (ggml's `type_traits`). A type that is missing here, because it is
# newer than this table, only makes the expected length a lower bound.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

_u32 = struct.Struct("<I").unpack_from
_u64 = struct.Struct("<Q").unpack_from

# read(position, least, most): at least `least` and at most `most` bytes; fewer only where the file ends.
# It may block until they are there.
ReadAt = Callable[[int, int, int], bytes]


class GGUFHeader(NamedTuple):
    """The first 24 bytes."""

    version: int
    tensors: int
    metadata_entries: int


class GGUFLayout(NamedTuple):
    """Offsets in bytes from the start of the file."""

    data_start: int  # all that llama.cpp reads when it maps a model lies before this
    least_size: int  # a shorter file is cut


class NotGGUF(ModelUnavailable):
    """The bytes are not those of a GGUF that llama.cpp can load."""

    code = "model_not_gguf"


def check_gguf(path: str) -> GGUFHeader:
    """Look at the first bytes of a local file: 0.1 ms.

    A file that was cut in its tensors passes: llama.cpp compares every tensor's end with the file's when it loads, and
    to do so here would mean a walk over the vocabulary (`check_whole_gguf`).

    Raises:
        ModelUnavailable: missing, unreadable, empty, not a GGUF.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return parse_header(file.read(HEADER_BYTES), path)
    except OSError as error:
        raise ModelUnavailable(
            f"The model {path!r} cannot be read: {error.strerror}.",
            hint="Check MODEL and LOCAL_MODEL_PATH, and the file's permissions.",
        ) from error


def check_whole_gguf(path: str) -> GGUFLayout:
    """Walk the metadata and compare the file's length with what it needs: some 50 ms for a large vocabulary.

    Raises:
        ModelUnavailable: as `check_gguf`, and when the file is cut.
    """
    check_gguf(path)
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return read_layout(lambda position, least, most: os.pread(file.fileno(), most, position), size, path)


def parse_header(data: bytes, name: str) -> GGUFHeader:
    hint = "The file is damaged, or is something else: a web page, a Git LFS pointer, another format."
    if len(data) < HEADER_BYTES:
        raise NotGGUF(f"{name!r} is not a GGUF model: it has {len(data)} bytes.", hint=hint)
    if data[:4] != b"GGUF":
        raise NotGGUF(f"{name!r} is not a GGUF model: it begins with {data[:4]!r}, not b'GGUF'.", hint=hint)
    (version,) = _u32(data, 4)
    if version not in (2, 3):
        raise NotGGUF(
            f"{name!r} has GGUF version {version}; llama.cpp reads 2 and 3, little-endian.",
            hint="Convert the model again with a present llama.cpp.",
        )
    header = GGUFHeader(version, _u64(data, 8)[0], _u64(data, 16)[0])
    if header.metadata_entries == 0:
        raise NotGGUF(f"{name!r} is damaged: a GGUF without metadata.", hint=hint)
    return header


def read_layout(read: ReadAt, size: int, name: str) -> GGUFLayout:
    """Walk metadata and tensor descriptions of a GGUF of `size` bytes.

    Raises:
        NotGGUF: it is not one, it is damaged, or `size` is less than it needs.
    """
    walk = _Walk(read, size, name)
    header = parse_header(walk.take(HEADER_BYTES), name)
    alignment = 32
    for _ in range(header.metadata_entries):
        key = walk.take(walk.u64())
        kind = walk.u32()
        if key == b"general.alignment" and kind == 4:
            alignment = walk.u32() or alignment
        elif kind == _STRING:
            walk.skip(walk.u64())
        elif kind == _ARRAY:
            walk.skip_array()
        else:
            walk.skip(walk.value_bytes(kind))
    ends = [0]
    for _ in range(header.tensors):
        walk.skip(walk.u64())  # its name
        elements = 1
        for _ in range(walk.u32()):
            elements *= walk.u64()
        block = _BLOCKS.get(walk.u32())
        offset = walk.u64()
        ends.append(offset + (elements // block[0] * block[1] if block else 1))
    data_start = -(-walk.position // alignment) * alignment if header.tensors else walk.position
    layout = GGUFLayout(data_start, data_start + max(ends))
    if layout.least_size > size:
        raise NotGGUF(
            f"{name!r} is cut: {size:,} bytes where its tensors need {layout.least_size:,}.",
            hint="Fetch or copy the file again.",
        )
    return layout


class _Walk:
    """A position in the file and the bytes just read there."""

    __slots__ = ("_data", "_name", "_offset", "_read", "_size", "_start")

    def __init__(self, read: ReadAt, size: int, name: str) -> None:
        self._read = read
        self._size = size
        self._name = name
        self._start = 0  # where `_data` begins in the file
        self._data = b""
        self._offset = 0  # in `_data`; beyond its end after a long skip

    @property
    def position(self) -> int:
        return self._start + self._offset

    def take(self, count: int) -> bytes:
        self._need(count)
        taken = self._data[self._offset : self._offset + count]
        self._offset += count
        return taken

    def skip(self, count: int) -> None:
        self._offset += count

    def u32(self) -> int:
        self._need(4)
        (value,) = _u32(self._data, self._offset)
        self._offset += 4
        return int(value)

    def u64(self) -> int:
        self._need(8)
        (value,) = _u64(self._data, self._offset)
        self._offset += 8
        return int(value)

    def value_bytes(self, kind: int) -> int:
        try:
            return _VALUE_BYTES[kind]
        except KeyError:
            raise self._damaged(f"value type {kind} before byte {self.position:,}") from None

    def skip_array(self) -> None:
        kind, count = self.u32(), self.u64()
        if kind != _STRING:
            self.skip(self.value_bytes(kind) * count)
            return
        # The vocabulary and its merges: 300,000 strings, so this loop is kept tight.
        unpack = _u64
        while count:
            self._need(8)
            data, offset, last = self._data, self._offset, len(self._data) - 8
            while count and offset <= last:
                offset += 8 + unpack(data, offset)[0]
                count -= 1
            self._offset = offset

    def _need(self, count: int) -> None:
        if self._offset + count <= len(self._data):
            return
        position = self.position
        if position + count > self._size:
            raise self._damaged(f"its metadata ends at byte {position + count:,}, the file at {self._size:,}")
        self._data = self._read(position, count, max(count, _READ_BYTES))
        self._start, self._offset = position, 0
        if len(self._data) < count:
            raise self._damaged(f"it ended at byte {position + len(self._data):,}")

    def _damaged(self, what: str) -> NotGGUF:
        return NotGGUF(f"{self._name!r} is a damaged or cut GGUF: {what}.", hint="Fetch or copy the file again.")
