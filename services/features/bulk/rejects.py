"""Rows that were not imported, and why: one JSON object a line, in the order of the file.

    {"row": 17, "code": "unknown_event_type", "message": "event_type 'veiw' is not declared …", "values": {…}}

A batch's lines are on the disk before the batch is committed, so a crash loses none; those of a batch that was not
committed are taken away by the run that goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from shared.errors import ValidationFailed


@dataclass(frozen=True, slots=True)
class Reject:
    """`values`: the row's mapped cells as they were read."""

    row: int
    code: str
    message: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def as_line(self) -> bytes:
        content = {"row": self.row, "code": self.code, "message": self.message, "values": dict(self.values)}
        return orjson.dumps(content, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


class RejectFile:
    """A batch is staged before its commit, again when the transaction is repeated, and kept after it."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._kept = 0 if file is None else file.tell()

    def stage(self, rejects: Sequence[Reject]) -> None:
        """Returns when the lines are durable."""
        if self._file is None:
            return
        moved = self._file.tell() != self._kept
        if moved:
            self._file.seek(self._kept)
            self._file.truncate()
        if rejects or moved:
            self._file.writelines(reject.as_line() for reject in rejects)
            self._file.flush()
            os.fsync(self._file.fileno())

    def keep(self) -> None:
        if self._file is not None:
            self._kept = self._file.tell()


@contextlib.contextmanager
def open_rejects(path: Path | None, *, kept_rows: int, source: Path) -> Iterator[RejectFile]:
    """Starts the file anew, or keeps its lines up to row `kept_rows`. Raises ValidationFailed."""
    if path is None:
        yield RejectFile(None)
        return
    if path.exists() and path.samefile(source):
        raise ValidationFailed(f"--rejects {path} is the file to be imported; name another one")
    try:
        kept = _kept(path, kept_rows)
        file = path.open("r+b" if kept else "wb")
    except OSError as error:
        raise ValidationFailed(f"--rejects {path} cannot be written: {error.strerror}") from None
    with file:
        file.truncate(kept)
        file.seek(kept)
        yield RejectFile(file)


def _kept(path: Path, rows: int) -> int:
    """The length in bytes of the lines up to row `rows`."""
    if not rows or not path.exists():
        return 0
    length = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = orjson.loads(line)["row"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                break
            if row > rows:
                break
            length += len(line)
    return length
