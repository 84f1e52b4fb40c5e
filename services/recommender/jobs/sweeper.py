"""Every second: settles jobs whose last worker died behind its commit, ends the leases of this machine's dead workers,
and sees to it that due chunks are looked for.

The broker's queue gets a message a due chunk, `max_waiting_wakeups` at most: 32, however many users a job has.
Several sweepers do no harm; each fills the same queue to the same mark.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from services.recommender.jobs.alive import is_gone
from services.recommender.jobs.broker import BrokerUnavailable
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store.rules import Rules
from services.recommender.jobs.working import settle
from shared.errors import DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.settings.roots import JobsSettings
from shared.storage.database import Database

# A fresh worker needs 5 s until it listens, 8 s on a busy machine, and says nothing meanwhile either.
DEAF_S = 20.0
_log = get_logger(__name__)


class Queue(Protocol):
    """`broker.WakeUps`, as far as it is used here; blocking."""

    @property
    def waiting(self) -> int: ...

    def top_up(self, wanted: int) -> int: ...


class Deafness:
    """A master whose connection broke in the middle of an ack can live on without ever listening again (seen with Redis
    killed under Celery 5.7). Its sign: messages wait, nobody takes one, and nobody of this machine is at work."""

    def __init__(self, patience_s: float = DEAF_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._since: float | None = None

    def is_deaf(self, *, due: int, sent: int, at_work: bool) -> bool:
        """Told after each sweep; true once, after `patience_s` of silence."""
        if due == 0 or sent > 0 or at_work:
            self._since = None
            return False
        if self._since is None:
            self._since = self._clock()
        if self._clock() - self._since < self._patience_s:
            return False
        self._since = None
        return True


class Sweeper:
    """Give `run` to a TaskOwner. `database_status` and `broker_status`: `ok`, or what is wrong. `unsettled`: jobs that
    the last sweep could not settle, and why."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        settings: JobsSettings,
        metrics: JobMetrics,
        *,
        gone: Callable[[str], bool] = is_gone,
        restart_worker: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._gone = gone
        self._restart_worker = restart_worker
        self._deafness = Deafness()
        self._queue = queue
        self._settings = settings
        self._rules = Rules.of(settings)
        self._metrics = metrics
        self._sleep = sleep
        self.database_status = "not asked yet"
        self.broker_status = "not asked yet"
        self.unsettled: Mapping[str, str] = {}

    async def run(self) -> None:
        while True:
            await self.sweep()
            await self._sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> int:
        """How many wake-ups were sent."""
        try:
            running, due, at_work = await self._database.run(self._look)
        except DatabaseUnavailable as error:
            self.database_status = error.detail
            return 0
        self.database_status = "ok"
        self._metrics.show(running)
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
        self._metrics.queued.set(self._queue.waiting)
        if self._deafness.is_deaf(due=due, sent=sent, at_work=at_work):
            _log.error("wake-ups wait and nobody takes them: the worker is started again", waited_s=DEAF_S)
            self._restart_worker()
        return sent

    def _look(self) -> tuple[list[job_rows.Running], int, bool]:
        """(jobs under way by type, chunks due up to the queue's bound, whether this machine has one in hand)."""
        with self._database.read() as connection:
            active = job_rows.active_ids(connection)
        causes = {job_id: self._settle(job_id) for job_id in active}
        self.unsettled = {job_id: cause for job_id, cause in causes.items() if cause is not None}
        if active:
            ended = self._database.transact(lambda connection: chunks.expire_gone(connection, active, self._gone))
            self._metrics.ended_leases.inc(ended)
        with self._database.read() as connection:
            running = job_rows.running(connection)  # those of a newer format too: that they stand still is to be seen
            if not active:
                return running, 0, False
            due = chunks.due_count(connection, self._settings.max_waiting_wakeups)
            return running, due, chunks.holds_lease(connection, active, socket.gethostname())

    def _settle(self, job_id: str) -> str | None:
        """What is wrong with the job, if anything: it holds up no other, is told once, and tried at each sweep. Raises
        DatabaseUnavailable."""
        try:
            settle(self._database, job_id, self._rules)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  (whatever its rows say, the other jobs are settled)
            expected = isinstance(error, SilkrecError)
            cause = error.detail if isinstance(error, SilkrecError) else type(error).__name__
            self._metrics.settle_failures.inc()
            if self.unsettled.get(job_id) != cause:
                told = None if expected else error
                _log.error("a job cannot be settled and is tried again", job_id=job_id, cause=cause, exc_info=told)
            return cause
        return None
