"""One segment file: a header, then records, each with its length and CRC.

    header   8 bytes "SRJRNL01", then uint64 `drained`: the offset up to which the database holds everything
    record   uint32 length, uint32 CRC-32 of the payload, payload                                    (little-endian)

One process appends; `drained` is eight aligned bytes written in place by whoever drains. A torn tail (the writer died
inside write(2), or the disk filled) fails its length or CRC, and reading ends before it. Losing `drained` costs only a
repeated drain, which changes nothing.

A header that begins otherwise, or a record of an unknown format, is a newer release's, or damage: the file is kept for
whoever can read it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SilkrecError

MAGIC = b"SRJRNL01"
SUFFIX = ".segment"
_HEADER = struct.Struct("<8sQ")
_RECORD = struct.Struct("<II")
_DRAINED = struct.Struct("<Q")
_DRAINED_AT = 8
# No slate comes near it: a greater length is damage, and must not become an allocation.
MAX_PAYLOAD = 16 * 1024 * 1024


class UnknownFormat(SilkrecError):
    """Nobody of this release can read it, and a newer one may."""

    code = "unknown_format"
    title = "A journal segment of an unknown format"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record begins, and where the next one would."""

    path: Path
    offset: int
    end: int


def frame(payload: bytes) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a record of {len(payload)} bytes is over the {MAX_PAYLOAD} of a segment")
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


class SegmentWriter:
    """Appends whole records; owned by one thread. `size` is the file's good length."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _write_all(self._file, _HEADER.pack(MAGIC, _HEADER.size), 0)
        except OSError:
            os.close(self._file)
            path.unlink()
            raise
        self.size = _HEADER.size

    def append(self, frames: bytes) -> int:
        """Returns the offset of the first. On failure the file is as before, and OSError is raised."""
        begin = self.size
        try:
            _write_all(self._file, frames, begin)
        except OSError:
            os.ftruncate(self._file, begin)
            raise
        self.size = begin + len(frames)
        return begin

    def sync(self) -> None:
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read_records(path: Path, begin: int | None = None) -> Iterator[tuple[Place, bytes]]:
    """Whole records from `begin` (default: the header's `drained`) to the end or the torn tail. Raises OSError,
    UnknownFormat for a header that is not this release's."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = begin if begin is not None else _drained_of(file.read(_HEADER.size), size)
        if offset is None:
            return
        file.seek(offset)
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            length, crc = _RECORD.unpack(head)
            end = offset + _RECORD.size + length
            if length > MAX_PAYLOAD or end > size:
                return
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != crc:
                return
            yield Place(path, offset, end), payload
            offset = end


def read_one(place: Place) -> bytes | None:
    """The payload of one record; None when the file is gone or the place is damaged."""
    try:
        return next((payload for found, payload in read_records(place.path, place.offset) if found == place), None)
    except FileNotFoundError:
        return None


def mark_drained(path: Path, offset: int) -> None:
    """Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(file, _DRAINED.pack(offset), _DRAINED_AT)
    finally:
        os.close(file)


def _drained_of(header: bytes, size: int) -> int | None:
    """None for a file that never became a segment. An offset outside the file means: from the beginning. Raises
    UnknownFormat."""
    magic = header[: len(MAGIC)]
    if not MAGIC.startswith(magic):
        raise UnknownFormat(f"its header begins with {magic!a}, and not with {MAGIC!a}")
    if len(header) < _HEADER.size:
        return None
    _, drained = _HEADER.unpack(header)
    return drained if _HEADER.size <= drained <= size else _HEADER.size


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
