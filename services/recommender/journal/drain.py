"""From segment files into the database, oldest first. Blocking; runs in the database's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError

from services.recommender.journal.database import put_slates
from services.recommender.journal.record import ServedSlate, decode
from services.recommender.journal.segment import Place, mark_drained, read_records
from services.recommender.metrics import JournalMetrics
from shared.observability.logging import get_logger
from shared.storage.database import Database

_log = get_logger(__name__)
BATCH_SLATES = 200
Forget = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Drainer:
    """`forget` is told the ids that a segment need not hold any longer."""

    database: Database
    metrics: JournalMetrics
    forget: Forget

    def drain(self, segments: Sequence[Path], *, growing: Path | None) -> int:
        """One batch of the oldest segment that has any; drained segments but `growing` are removed. How many records
        were handled; 0: nothing is left. Raises DatabaseUnavailable, OSError."""
        for path in segments:
            batch = _next_batch(path)
            if batch:
                self._store(batch)
                mark_drained(path, batch[-1][0].end)
                return len(batch)
            if path != growing:
                self._remove(path)
        return 0

    def _store(self, batch: Sequence[tuple[Place, bytes]]) -> None:
        slates = [slate for place, payload in batch if (slate := self._decoded(place, payload)) is not None]
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

    def _decoded(self, place: Place, payload: bytes) -> ServedSlate | None:
        try:
            slate = decode(payload)
        except (ValueError, TypeError) as error:
            _log.error("a journal record cannot be read", segment=place.path.name, offset=place.offset, exc_info=error)
            self.metrics.skipped.labels("unreadable").inc()
            return None
        if slate is None:
            self.metrics.skipped.labels("unknown_format").inc()
        return slate

    def _remove(self, path: Path) -> None:
        end, size = _readable_end(path), path.stat().st_size
        if end < size:
            # The process died in mid-write, or the file was damaged; those slates are gone either way.
            self.metrics.lost.labels("torn").inc()
            _log.warning("a journal segment ends in a torn record", segment=path.name, bytes=size - end)
        path.unlink()


def _next_batch(path: Path) -> list[tuple[Place, bytes]]:
    batch = []
    for found in read_records(path):
        batch.append(found)
        if len(batch) == BATCH_SLATES:
            break
    return batch


def _readable_end(path: Path) -> int:
    """The offset up to which everything was drained, once there is no further record."""
    with path.open("rb") as file:
        header = file.read(16)
    return int.from_bytes(header[8:16], "little") if len(header) == 16 else len(header)
