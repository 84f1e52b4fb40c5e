"""Every second: settles jobs whose last worker died behind its commit, ends the leases of this machine's dead workers,
and sees to it that due chunks are looked for.

The broker's queue gets a message a due chunk, `max_waiting_wakeups` at most: 32, however many users a job has.
Several sweepers do no harm; each fills the same queue to the same mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from services.recommender.jobs.alive import is_gone
from services.recommender.jobs.broker import BrokerUnavailable
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store.rules import Rules
from services.recommender.jobs.working import settle
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.settings.roots import JobsSettings
from shared.storage.database import Database

_log = get_logger(__name__)


class Queue(Protocol):
    """`broker.WakeUps`, as far as it is used here; blocking."""

    def top_up(self, wanted: int) -> int: ...


class Sweeper:
    """Give `run` to a TaskOwner. `database_status` and `broker_status`: `ok`, or what is wrong."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        settings: JobsSettings,
        metrics: JobMetrics,
        *,
        gone: Callable[[str], bool] = is_gone,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._gone = gone
        self._queue = queue
        self._settings = settings
        self._rules = Rules.of(settings)
        self._metrics = metrics
        self._sleep = sleep
        self.database_status = "not asked yet"
        self.broker_status = "not asked yet"

    async def run(self) -> None:
        while True:
            await self.sweep()
            await self._sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> int:
        """How many wake-ups were sent."""
        try:
            active, due = await self._database.run(self._look)
        except DatabaseUnavailable as error:
            self.database_status = error.detail
            return 0
        self.database_status = "ok"
        self._metrics.active.set(active)
        self._metrics.due.set(due)
        try:
            # Nothing due: asked all the same, so that /ready knows about the broker before a job needs it.
            sent = await asyncio.to_thread(self._queue.top_up, min(due, self._settings.max_waiting_wakeups))
        except BrokerUnavailable as error:
            if self.broker_status == "ok":
                _log.warning("wake-ups wait for the broker", cause=error.detail)
            self.broker_status = error.detail
            return 0
        self.broker_status = "ok"
        self._metrics.wakeups.inc(sent)
        return sent

    def _look(self) -> tuple[int, int]:
        """(jobs under way, chunks due up to the queue's bound)."""
        with self._database.read() as connection:
            active = job_rows.active_ids(connection)
        for job_id in active:
            settle(self._database, job_id, self._rules)
        if not active:
            return 0, 0
        self._database.transact(lambda connection: chunks.expire_gone(connection, active, self._gone))
        with self._database.read() as connection:
            return len(active), chunks.due_count(connection, self._settings.max_waiting_wakeups)
