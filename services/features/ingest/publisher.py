"""Committed histories into Redis. What Redis could not be told stays marked in the database, for the sweeper."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from services.features.ingest.marks import Mark, MarkCleaner
from services.features.ingest.rows import WriteResult
from services.features.online.store import HistoryStore
from services.features.reading.breaker import CircuitBreaker
from services.features.reading.history import load_history
from shared.actions import ActionTable
from shared.contracts.history import UserHistory
from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.settings.roots import HistorySettings
from shared.storage.database import Database
from shared.storage.redis import RedisFailure

# Loading one history takes about a millisecond, and a whole group waits for it. Users beyond this are read from the
# database by their next request, which then writes them back.
REBUILDS_A_GROUP = 32
_log = get_logger(__name__)


class HistoryPublisher:
    """Used by one event loop. A hung Redis costs one group `timeout_s`, and then four groups a second."""

    def __init__(
        self,
        database: Database,
        histories: HistoryStore,
        cleaner: MarkCleaner,
        settings: HistorySettings,
        actions: ActionTable,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._histories = histories
        self._cleaner = cleaner
        self._max_events = settings.max_events
        self._actions = actions
        self._timeout_s = timeout_s
        self._clock = clock
        self._failed_at = -math.inf
        self.breaker = CircuitBreaker(failures=1, clock=clock)

    def failed_within(self, seconds: float) -> bool:
        """Did a commit of this process stay without its history in Redis, so recently?"""
        return self._clock() - self._failed_at <= seconds

    async def publish(self, result: WriteResult, marked_us: int) -> bool:
        """After the commit, before the answer. False when users stay marked; never raises for a store that is away."""
        if not result.additions:
            return True
        if not self.breaker.allow():
            self._failed_at = self._clock()
            return False
        try:
            async with asyncio.timeout(self._timeout_s):
                behind = await self._histories.append(result.additions)
        except RedisFailure as error:
            self._failed(error, len(result.additions))
            return False
        self.breaker.succeeded()
        self._cleaner.done(result.marks, marked_us)
        await self._warm(behind[:REBUILDS_A_GROUP])
        return True

    async def _warm(self, user_keys: Sequence[str]) -> None:
        """Redis holds nothing of these users any more, so nothing that is wrong: this may fail."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.rebuild(user_keys)
        except (DatabaseUnavailable, *RedisFailure) as error:
            _log.info("histories are left to their readers", users=len(user_keys), cause=type(error).__name__)

    async def republish(self, user_key: str, revision: int, marked_us: int) -> None:
        """After a change that took rows away. Where a store is away the user stays marked, for the sweeper."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.rebuild([user_key])
        except (DatabaseUnavailable, *RedisFailure) as error:
            self._failed(error, 1)
            return
        self._cleaner.done([Mark(user_key, revision, marked_us)], marked_us)

    async def rebuild(self, user_keys: Sequence[str]) -> None:
        """Whole histories from the database. Raises DatabaseUnavailable, RedisFailure."""
        if user_keys:
            await self._histories.replace_many(await self._database.run(self._load, user_keys))

    def _failed(self, error: BaseException, users: int) -> None:
        if not isinstance(error, DatabaseUnavailable):
            self.breaker.failed()
        self._failed_at = self._clock()
        _log.warning("histories are not in Redis yet", users=users, cause=type(error).__name__)

    def _load(self, user_keys: Sequence[str]) -> list[UserHistory]:
        with self._database.read() as connection:
            return [
                load_history(connection, user_key, max_events=self._max_events, actions=self._actions)
                for user_key in user_keys
            ]
