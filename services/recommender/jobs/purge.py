"""Finished jobs past their retention: slates, chunks, events, files, and the job itself last, in small steps.

Nothing is remembered between runs: a job whose row is still there is found again, so a crash only means going on.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Column, Connection, Table, select

from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.jobs import FORMAT
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.database import Database
from shared.storage.statements import delete_rows
from shared.storage.tables import batch_slates, job_chunks, job_events, jobs, user_state

CHUNK_ROWS = 1000
# At most 10,000 rows a second beside the traffic, as the purge of events.
PAUSE_S = 0.1
INTERVAL_S = 3600.0
RETRY_S = 60.0
DAY_US = 86_400_000_000
_log = get_logger(__name__)


def oldest_expired(connection: Connection, days: int, clock: Clock = database_clock) -> str | None:
    """A job that ended more than `days` ago. One of a newer format may have more to it than this release would remove;
    without its row nobody would find that."""
    finished = jobs.c.finished_at_us
    query = select(jobs.c.job_id).where(finished < clock(connection) - days * DAY_US, jobs.c.format <= FORMAT)
    return connection.scalar(query.order_by(finished).limit(1))


def purge_of(connection: Connection, owner: Column[str], job_id: str, chunk_rows: int = CHUNK_ROWS) -> int:
    """Rows of a job from the table of `owner`, its job_id column; fewer than `chunk_rows`: there are no more."""
    table: Table = owner.table
    keys = connection.execute(select(*table.primary_key).where(owner == job_id).limit(chunk_rows)).all()
    return delete_rows(connection, table, keys)


def purge_deleted_users(connection: Connection, chunk_rows: int = CHUNK_ROWS) -> int:
    """Slates of users who were deleted while a job was under way that had them planned."""
    key = list(batch_slates.primary_key)
    late = (
        select(*key)
        .select_from(user_state.join(batch_slates, batch_slates.c.user_key == user_state.c.user_key))
        .where(user_state.c.deleted_at_us.is_not(None))
        .limit(chunk_rows)
    )
    return delete_rows(connection, batch_slates, connection.execute(late).all())


class JobPurge:
    """Give `run` to a TaskOwner."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        days: int,
        metrics: JobMetrics,
        *,
        clock: Clock = database_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._folder = folder
        self._days = days
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        while True:
            try:
                await self.purge_once()
            except (DatabaseUnavailable, OSError) as error:
                _log.warning("the purge of jobs stopped early and goes on soon", cause=str(error))
                await self._sleep(RETRY_S)
                continue
            await self._sleep(INTERVAL_S)

    async def purge_once(self) -> int:
        """How many jobs went. Raises DatabaseUnavailable, OSError."""
        gone = 0
        await self._drain("batch_slates", purge_deleted_users)
        while (job_id := await self._database.run(self._oldest)) is not None:
            for table in (batch_slates, job_chunks, job_events):
                await self._drain(table.name, partial(_purge_of, table.c.job_id, job_id))
            await asyncio.to_thread(_remove, self._folder / job_id)
            await self._drain("jobs", partial(_purge_of, jobs.c.job_id, job_id))
            gone += 1
        return gone

    def _oldest(self) -> str | None:
        with self._database.read() as connection:
            return oldest_expired(connection, self._days, self._clock)

    async def _drain(self, what: str, purge: Callable[[Connection], int]) -> None:
        while True:
            count = await self._database.run(self._database.transact, purge)
            self._metrics.purged.labels(what).inc(count)
            if count < CHUNK_ROWS:
                return
            await self._sleep(PAUSE_S)


def _purge_of(owner: Column[str], job_id: str, connection: Connection) -> int:
    return purge_of(connection, owner, job_id)


def _remove(folder: Path) -> None:
    """A reader that has the manifest open loses parts; retention is days longer than any reading."""
    if folder.is_dir():
        shutil.rmtree(folder)
