"""Committed histories into Redis. What Redis refuses or misses stays marked in the database, for the sweeper."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from services.features.ingest.rows import WriteResult
from services.features.ingest.writer import clear_marks
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

_log = get_logger(__name__)


class HistoryPublisher:
    """Used by one event loop. A dead Redis costs its time-out to the first few groups and then to four a second."""

    def __init__(
        self,
        database: Database,
        histories: HistoryStore,
        settings: HistorySettings,
        actions: ActionTable,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._histories = histories
        self._max_events = settings.max_events
        self._actions = actions
        self._clock = clock
        self._failed_at = -math.inf
        self.breaker = CircuitBreaker(failures=2, clock=clock)

    def failed_within(self, seconds: float) -> bool:
        """Did a commit of this process stay without its history in Redis, so recently?"""
        return self._clock() - self._failed_at <= seconds

    async def publish(self, result: WriteResult, marked_us: int) -> bool:
        """After the commit, before the answer. False when users stay marked; never raises for a store that is away."""
        if not result.additions:
            return True
        done = self.breaker.allow() and await self._to_redis(result)
        if not done:
            self._failed_at = self._clock()
            return False
        try:
            await self._database.run(self._clear, result, marked_us)
        except DatabaseUnavailable as error:
            _log.warning("marks are cleared later", cause=error.detail)
            return False
        return True

    async def _to_redis(self, result: WriteResult) -> bool:
        try:
            behind = await self._histories.append(result.additions)
            if behind:
                await self.rebuild(behind)
        except RedisFailure as error:
            self.breaker.failed()
            _log.warning("histories are not in Redis yet", users=len(result.additions), cause=type(error).__name__)
            return False
        except DatabaseUnavailable as error:
            _log.warning("histories cannot be rebuilt yet", cause=error.detail)
            return False
        self.breaker.succeeded()
        return True

    async def republish(self, user_key: str) -> None:
        """After a change that took rows away. Where a store is away the user stays marked, for the sweeper."""
        try:
            await self.rebuild([user_key])
        except (DatabaseUnavailable, *RedisFailure) as error:
            self._failed_at = self._clock()
            _log.warning("a history is not in Redis yet", cause=type(error).__name__)

    async def rebuild(self, user_keys: Sequence[str]) -> None:
        """Whole histories from the database. Raises DatabaseUnavailable, RedisFailure."""
        await self._histories.replace_many(await self._database.run(self._load, user_keys))

    def _load(self, user_keys: Sequence[str]) -> list[UserHistory]:
        with self._database.read() as connection:
            return [
                load_history(connection, user_key, max_events=self._max_events, actions=self._actions)
                for user_key in user_keys
            ]

    def _clear(self, result: WriteResult, marked_us: int) -> None:
        self._database.transact(lambda connection: clear_marks(connection, result.marked, marked_us))
