"""Dirty marks: set by the commit that changes a history, cleared once Redis holds it or holds nothing older.

An event is answered before its mark is cleared: the answer promises what is durable and what Redis shows, and the
clearing of many commits then shares one transaction. Marks of a process that ends in between are the sweeper's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, tuple_, update

from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.database import Database
from shared.storage.tables import user_state

CHUNK = 1000
# Well within the second after which a mark takes the lease away; at 20 transactions a second the disk hardly notices.
GATHER_S = 0.05
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """`dirty_since_us` as this commit set it, with the revision that it made."""

    user_key: str
    revision: int
    dirty_since_us: int


def clear_marks(connection: Connection, marks: Sequence[Mark]) -> None:
    """Of users at exactly that revision, marked at exactly that time: a later change keeps its mark."""
    for chunk in _chunks(sorted(marks, key=lambda mark: mark.user_key)):
        state = tuple_(user_state.c.user_key, user_state.c.revision, user_state.c.dirty_since_us)
        same = state.in_([(mark.user_key, mark.revision, mark.dirty_since_us) for mark in chunk])
        # The keys once more by themselves: for the comparison of rows alone SQLite scans the table.
        named = user_state.c.user_key.in_([mark.user_key for mark in chunk])
        connection.execute(update(user_state).where(named, same).values(dirty_since_us=None))


class MarkCleaner:
    """`done` from the event loop, `run` in one TaskOwner's loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Of one user the newest counts: what was committed before it lies behind its revision.
        self._waiting: dict[str, Mark] = {}
        self._last: dict[str, Mark] = {}
        self._arrived = asyncio.Event()

    def done(self, marks: Sequence[Mark], marked_us: int) -> None:
        """Redis holds these revisions. A mark older than `marked_us`, the commit's own time, is cleared only if this
        object was about to clear it anyway: any other tells of something that Redis may still lack."""
        for mark in marks:
            known = self._waiting.get(mark.user_key) or self._last.get(mark.user_key)
            if mark.dirty_since_us == marked_us or (known and known.dirty_since_us == mark.dirty_since_us):
                self._waiting[mark.user_key] = mark
        if self._waiting:
            self._arrived.set()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            await self.clear()

    async def clear(self) -> None:
        """All that wait. Where the database is away they stay marked, and the sweeper looks at them once more."""
        self._last, self._waiting = self._waiting, {}
        self._arrived.clear()
        try:
            await self._database.run(self._transact, list(self._last.values()))
        except DatabaseUnavailable as error:
            _log.warning("marks are cleared later", cause=error.detail)

    def _transact(self, marks: Sequence[Mark]) -> None:
        self._database.transact(lambda connection: clear_marks(connection, marks))


def _chunks(marks: Sequence[Mark]) -> Iterator[Sequence[Mark]]:
    return (marks[start : start + CHUNK] for start in range(0, len(marks), CHUNK))
