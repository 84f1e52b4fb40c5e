"""From segment files into the database, oldest first. Blocking; runs in the database's threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError

from services.recommender.journal.database import put_slates
from services.recommender.journal.record import ServedSlate, decode
from services.recommender.journal.segment import UnknownFormat, mark_drained, read_records
from services.recommender.metrics import JournalMetrics
from shared.observability.logging import get_logger
from shared.storage.database import Database

_log = get_logger(__name__)
BATCH_SLATES = 200
Forget = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Drainer:
    """`forget` is told the ids that a segment need not hold any longer. `kept`: segments that were met and that a newer
    release may be able to read; each is told once."""

    database: Database
    metrics: JournalMetrics
    forget: Forget
    kept: set[Path] = field(default_factory=set)

    def drain(self, segments: Sequence[Path], *, growing: Path | None) -> int:
        """One batch of the oldest segment that has any; drained segments but `growing` are removed. How many records
        were handled; 0: nothing is left but what is kept. Raises DatabaseUnavailable, OSError."""
        for path in segments:
            try:
                handled = self._batch(path)
            except UnknownFormat as error:
                self._keep(path, error)
                continue
            if handled:
                return handled
            if path != growing:
                self._remove(path)
        return 0

    def still_kept(self) -> int:
        """How many of `kept` nobody has read or removed since."""
        self.kept.difference_update([path for path in tuple(self.kept) if not path.exists()])
        return len(self.kept)

    def _batch(self, path: Path) -> int:
        """Up to the first record of an unknown format; UnknownFormat is raised when nothing is before it."""
        slates, handled, end = [], 0, 0
        for place, payload in itertools.islice(read_records(path), BATCH_SLATES):
            try:
                slates.append(decode(payload))
            except UnknownFormat:
                if handled:
                    break
                raise
            except (ValueError, TypeError) as error:
                _log.error("a journal record cannot be read", segment=path.name, offset=place.offset, exc_info=error)
                self.metrics.skipped.labels("unreadable").inc()
            handled, end = handled + 1, place.end
        if handled:
            self._store(slates)
            mark_drained(path, end)
        return handled

    def _store(self, slates: Sequence[ServedSlate]) -> None:
        try:
            self._put(slates)
        except (DataError, IntegrityError):
            # One that the database will never take must not hold up those behind it.
            for slate in slates:
                try:
                    self._put([slate])
                except (DataError, IntegrityError) as error:
                    self.metrics.skipped.labels("refused").inc()
                    _log.error("the database refuses a slate", recommendation=slate.recommendation_id, exc_info=error)
        self.forget([slate.recommendation_id for slate in slates])

    def _put(self, slates: Sequence[ServedSlate]) -> None:
        if not slates:
            return
        left_out = self.database.transact(lambda connection: put_slates(connection, slates))
        self.metrics.drained.inc(len(slates) - left_out)
        if left_out:
            self.metrics.skipped.labels("user_deleted").inc(left_out)

    def _keep(self, path: Path, error: UnknownFormat) -> None:
        if path in self.kept:
            return
        self.kept.add(path)
        _log.error(
            "a journal segment of a newer release, or a damaged one, is kept for whoever can read it",
            segment=str(path),
            cause=error.detail,
        )

    def _remove(self, path: Path) -> None:
        end, size = _readable_end(path), path.stat().st_size
        if end < size:
            # The process died in mid-write, or the file was damaged; those slates are gone either way.
            self.metrics.lost.labels("torn").inc()
            _log.warning("a journal segment ends in a torn record", segment=path.name, bytes=size - end)
        path.unlink()


def unknown(path: Path) -> str | None:
    """Why this release cannot go on reading the segment; None: it can. Raises OSError."""
    try:
        for _place, payload in read_records(path):
            decode(payload)
            break
    except UnknownFormat as error:
        return error.detail
    except (ValueError, TypeError):
        return None  # one damaged record is passed over
    return None


def _readable_end(path: Path) -> int:
    """The offset up to which everything was drained, once there is no further record."""
    with path.open("rb") as file:
        header = file.read(16)
    return int.from_bytes(header[8:16], "little") if len(header) == 16 else len(header)
