"""Brings Redis level with the database again, and says by a lease when it is.

Users are marked dirty by the commit that changed them, and unmarked once Redis holds the change. Who stays marked for
longer than a second met an outage: the sweeper writes their histories and profiles anew. Only while there is nobody
like that does the lease exist, and only under the lease do readers trust Redis without asking the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from redis.asyncio import Redis
from sqlalchemy import ColumnElement, func, select

from services.features.ingest.marks import Mark, clear_marks
from services.features.ingest.publisher import HistoryPublisher
from services.features.metrics import SweepMetrics
from services.features.online.keys import SYNC_LEASE
from services.features.users.refresh import refresh_profiles
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.database import Database
from shared.storage.redis import RedisFailure
from shared.storage.tables import user_state

LEASE_MS = 2000
# A commit's own way to Redis takes milliseconds; whoever is dirty for longer needs the sweeper.
GRACE_US = 1_000_000
BATCH = 500
# Counting a million marks costs the database 0.2 s; 1 in 20 of the time at most.
SHARE = 20.0
_log = get_logger(__name__)


class Sweeper:
    """`run` in one TaskOwner's loop; several replicas may sweep at once, every step is a compare-and-set. `database`
    and `redis` are `ok`, or what was wrong at the last sweep."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        publisher: HistoryPublisher,
        metrics: SweepMetrics,
        *,
        interval_s: float,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._redis = redis
        self._publisher = publisher
        self._metrics = metrics
        self._interval_s = interval_s
        self._clock = clock
        self._sleep = sleep
        self.database = self.redis = "not asked yet"
        self._count_at = 0.0

    async def run(self) -> None:
        while True:
            database = redis = "ok"
            try:
                while await self.sweep() == BATCH:
                    continue
            except DatabaseUnavailable as error:
                database = error.detail
            except RedisFailure as error:
                redis = f"does not answer ({type(error).__name__})"
            if (database, redis) != (self.database, self.redis):
                _log.info("a dependency changed", database=database, redis=redis)
            self.database, self.redis = database, redis
            await self._sleep(self._interval_s)

    async def sweep(self) -> int:
        """How many users were dirty for too long, BATCH at most. Raises DatabaseUnavailable, RedisFailure."""
        marks = await self._database.run(self._dirty)
        await self._tell(len(marks))
        if marks:
            await self._redis.ping()  # reading 500 histories for a Redis that is away took the database 4 s a sweep
            user_keys = [mark.user_key for mark in marks]
            await self._publisher.rebuild(user_keys)
            await refresh_profiles(self._database, self._redis, user_keys)
            await self._database.run(self._clear, marks)
            self._metrics.rebuilt.inc(len(marks))
        # A commit that did not reach Redis within the grace is no mark to this sweep yet, but the next one's.
        if len(marks) < BATCH and not self._publisher.failed_within(GRACE_US / 1_000_000 + self._interval_s):
            await self._redis.set(SYNC_LEASE, b"1", px=LEASE_MS)
        return len(marks)

    async def _tell(self, found: int) -> None:
        """A full batch says nothing of how many more there are."""
        if found < BATCH:
            self._metrics.dirty.set(found)
            return
        began = self._clock()
        if began >= self._count_at:
            self._metrics.dirty.set(await self._database.run(self._count))
            now = self._clock()
            self._count_at = now + SHARE * (now - began)

    def _is_overdue(self) -> ColumnElement[bool]:
        return user_state.c.dirty_since_us <= int(self._clock() * 1_000_000) - GRACE_US

    def _count(self) -> int:
        with self._database.read() as connection:
            query = select(func.count()).select_from(user_state).where(self._is_overdue())
            return int(connection.scalar(query) or 0)

    def _dirty(self) -> list[Mark]:
        columns = (user_state.c.user_key, user_state.c.revision, user_state.c.dirty_since_us)
        oldest = select(*columns).where(self._is_overdue())
        with self._database.read() as connection:
            rows = connection.execute(oldest.order_by(user_state.c.dirty_since_us).limit(BATCH)).all()
        return [Mark(row.user_key, row.revision, row.dirty_since_us) for row in rows]

    def _clear(self, marks: Sequence[Mark]) -> None:
        self._database.transact(lambda connection: clear_marks(connection, marks))
