"""Grouped commits: requests that arrive together share one transaction, one round trip to Redis, one fsync.

One writer a process, so groups of one process never wait for each other's locks. A group is what had arrived when the
writer came free, plus what arrives within `commit_delay_ms`; while it is written the next one gathers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.features.ingest.publisher import HistoryPublisher
from services.features.ingest.rows import EventRow, Outcome, WriteResult
from services.features.ingest.writer import commit_events
from services.features.metrics import IngestMetrics
from shared.actions import ActionTable
from shared.errors import DatabaseUnavailable, Overloaded, SilkrecError
from shared.observability.logging import get_logger
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database

RETRY_AFTER_S = 1.0
_log = get_logger(__name__)


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Waiting:
    """`since`: monotonic seconds."""

    rows: Sequence[EventRow]
    outcomes: asyncio.Future[tuple[Outcome, ...]]
    since: float


class EventIngest:
    """`submit` from routes, `run` in one TaskOwner's loop. Bounded by `queue_max_events`."""

    def __init__(
        self,
        database: Database,
        publisher: HistoryPublisher,
        settings: FeaturesSettings,
        actions: ActionTable,
        metrics: IngestMetrics,
        *,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._delay_s = settings.commit_delay_ms / 1000
        self._group_events = settings.commit_max_events
        self._most_events = settings.queue_max_events
        self._actions = actions
        self._metrics = metrics
        self._clock_us = clock_us
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._arrived = asyncio.Event()

    async def submit(self, rows: Sequence[EventRow]) -> tuple[Outcome, ...]:
        """Returns after the commit, with an outcome a row. Raises Overloaded, DatabaseUnavailable: nothing of `rows`
        was then acknowledged, and sending them again is safe."""
        if not rows:
            return ()
        if self._queued + len(rows) > self._most_events:
            self._metrics.refused.inc(len(rows))
            raise Overloaded(
                f"{self._queued} events wait to be written (features.queue_max_events); send these again later",
                retry_after_s=RETRY_AFTER_S,
            )
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future(), time.monotonic())
        self._queue.append(waiting)
        self._queued += len(rows)
        self._metrics.queued.set(self._queued)
        self._arrived.set()
        return await waiting.outcomes

    async def run(self) -> None:
        """For ever. Whatever ends it, nobody is left waiting."""
        group: list[_Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                group = self._take()
                await self._write(group)
        finally:
            failure = DatabaseUnavailable("the writer of events stopped; send them again", retry_after_s=RETRY_AFTER_S)
            for waiting in [*group, *self._queue]:
                _fail(waiting, failure)
            self._forget_queue()

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._queued = 0
        self._metrics.queued.set(0)
        self._arrived.clear()

    def _take(self) -> list[_Waiting]:
        """Whole requests, at least one, up to `commit_max_events`."""
        group, count = [self._queue.popleft()], 0
        count = len(group[0].rows)
        while self._queue and count + len(self._queue[0].rows) <= self._group_events:
            count += len(self._queue[0].rows)
            group.append(self._queue.popleft())
        self._queued -= count
        self._metrics.queued.set(self._queued)
        now = time.monotonic()
        for waiting in group:
            self._metrics.waited.observe(now - waiting.since)
        if not self._queue:
            self._arrived.clear()
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        """A group that cannot be written for a reason of its own is tried by halves, so that one request's fault is
        that request's alone; a database that is away fails all of it at once."""
        rows = [row for waiting in group for row in waiting.rows]
        marked_us = self._clock_us()
        try:
            with self._metrics.commit.time():
                result = await self._database.run(commit_events, self._database, rows, self._actions, marked_us)
        except Overloaded as error:
            for waiting in group:
                _fail(waiting, error)
            return
        except DatabaseUnavailable as error:
            # Those behind would wait for the same silence, one group after the other.
            for waiting in [*group, *self._queue]:
                _fail(waiting, error)
            self._forget_queue()
            return
        except Exception as error:  # noqa: BLE001  (whatever one request brings along, the others are written)
            if len(group) == 1:
                _log.error("events could not be written", events=len(rows), exc_info=error)
                _fail(group[0], SilkrecError("these events could not be written; the log of the service says why"))
                return
            middle = len(group) // 2
            await self._write(group[:middle])
            await self._write(group[middle:])
            return
        await self._publisher.publish(result, marked_us)
        self._answer(group, result)

    def _answer(self, group: list[_Waiting], result: WriteResult) -> None:
        self._metrics.group_events.observe(len(result.outcomes))
        for outcome in ("accepted", "duplicate", "refused"):
            self._metrics.events.labels(outcome).inc(result.outcomes.count(outcome))
        start = 0
        for waiting in group:
            end = start + len(waiting.rows)
            if not waiting.outcomes.done():
                waiting.outcomes.set_result(result.outcomes[start:end])
            start = end


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.outcomes.done():
        waiting.outcomes.set_exception(error)
