"""How far an import came: a row of `import_progress`, written in the same transaction as the batch it tells of.

So a process that is killed at any moment leaves a row that is true, and the next run goes on behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from shared.errors import Conflict
from shared.storage.tables import import_progress


@dataclass(frozen=True, slots=True)
class Progress:
    """`rows_done`: every row up to here is stored, known already, or rejected (`rows_rejected` of them)."""

    rows_done: int = 0
    rows_rejected: int = 0
    finished_at_us: int | None = None


def find(connection: Connection, import_id: str) -> Progress | None:
    found = connection.execute(_row(import_id)).one_or_none()
    return None if found is None else Progress(found.rows_done, found.rows_rejected, found.finished_at_us)


def forget(connection: Connection, import_id: str) -> None:
    connection.execute(delete(import_progress).where(import_progress.c.import_id == import_id))


def advance(
    connection: Connection, import_id: str, source: str, before: Progress, after: Progress, now_us: int
) -> None:
    """Raises Conflict when another process moved this import meanwhile; nothing of the batch may then be committed."""
    row = connection.execute(_row(import_id).with_for_update()).one_or_none()
    found = Progress() if row is None else Progress(row.rows_done, row.rows_rejected, row.finished_at_us)
    if (found.rows_done, found.finished_at_us) != (before.rows_done, before.finished_at_us):
        raise Conflict("another process is importing the same file; let it end, then run this one again")
    values: Mapping[str, Any] = {
        "rows_done": after.rows_done,
        "rows_rejected": after.rows_rejected,
        "finished_at_us": after.finished_at_us,
        "updated_at_us": now_us,
    }
    if row is None:
        connection.execute(insert(import_progress).values(import_id=import_id, source=source, **values))
    else:
        connection.execute(update(import_progress).where(import_progress.c.import_id == import_id).values(**values))


def _row(import_id: str) -> Any:
    return select(import_progress).where(import_progress.c.import_id == import_id)
