"""Keeps the popular table level with the daily counts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from services.recommender.metrics import ServingMetrics
from services.recommender.popular import DailyColumns, PopularTable
from services.recommender.serving.state import ServingState, StateHolder
from services.recommender.serving.threads import Threads
from shared.actions import ActionTable
from shared.errors import DatabaseUnavailable

INTERVAL_S = 3.0
# Reading the counts costs the database by their number; 1 in 20 of the time at most.
SHARE = 20.0
# Between, only days whose totals changed are read.
WHOLE_EVERY_S = 600.0


class DailyReader(Protocol):
    """The part of FeatureReader that is needed; blocking."""

    def daily_actions(self, before: Any = None) -> DailyColumns: ...


class PopularRefresher:
    """`run()` for ever in one task. The table is built anew only when counts, categories or the catalogue changed."""

    def __init__(
        self,
        *,
        database: Threads,
        reader: DailyReader,
        holder: StateHolder,
        actions: ActionTable,
        metrics: ServingMetrics,
        half_life_days: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._reader = reader
        self._holder = holder
        self._actions = actions
        self._metrics = metrics
        self._half_life_days = half_life_days
        self._clock = clock
        self._sleep = sleep
        self._last: DailyColumns | None = None
        self._whole_at = -math.inf
        self._revision = -1
        self.status = "not read yet"
        self.read = asyncio.Event()

    @property
    def loaded(self) -> bool:
        """Read at least once, if only to learn that there is nothing yet; `read` is the event to wait for."""
        return self.read.is_set()

    async def run(self) -> None:
        while True:
            started = self._clock()
            await self.refresh()
            await self._sleep(max(INTERVAL_S, SHARE * (self._clock() - started)))

    async def refresh(self) -> bool:
        """True when a new table is in service. A dead database leaves the last one."""
        now = self._clock()
        if now - self._whole_at >= WHOLE_EVERY_S:
            self._last = None
        try:
            daily = await self._database.run(self._reader.daily_actions, self._last)
        except DatabaseUnavailable as error:
            self.status = error.detail
            self._metrics.refresh_failures.labels("popular").inc()
            return False
        state = self._holder.current()
        if self._last is None:
            self._whole_at = now
        changed = daily is not self._last or state.catalogue.revision != self._revision
        if changed:
            table = await asyncio.to_thread(self._build, daily, state)
            self._holder.swap(popular=table)
            self._metrics.popular_items.set(len(table))
            self._last, self._revision = daily, state.catalogue.revision
        self.status = "ok"
        self.read.set()
        return changed

    def _build(self, daily: DailyColumns, state: ServingState) -> PopularTable:
        return PopularTable.from_daily(daily, self._actions, self._half_life_days, state.catalogue)
