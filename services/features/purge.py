"""The daily purge: rows past their retention go, in small chunks, so that no writer ever waits long for it.

Nothing is remembered between runs: what is still too old is found again, so a crash only means that the next run goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from sqlalchemy import Column, Connection, Table, delete, select, tuple_

from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database
from shared.storage.tables import events, item_daily, recommendation_items, recommendations, user_state

CHUNK_ROWS = 1000
# At 1,000 rows a pause this long the purge deletes at most 10,000 rows a second beside the traffic.
PAUSE_S = 0.1
INTERVAL_S = 24 * 3600.0
RETRY_S = 60.0
DAY_US = 86_400_000_000
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows of `table` whose `day` is below the cut-off go; `key` is the primary key."""

    table: Table
    day: Column[int]
    retention_days: int

    @property
    def key(self) -> list[Column[Any]]:
        return list(self.table.primary_key)


def rules(settings: FeaturesSettings) -> tuple[Rule, ...]:
    """Slots before their slates: a slate that is left without slots is found and removed by the next run."""
    return (
        Rule(events, events.c.occurred_day, settings.event_retention_days),
        Rule(item_daily, item_daily.c.occurred_day, settings.event_retention_days),
        Rule(recommendation_items, recommendation_items.c.served_day, settings.slate_retention_days),
        Rule(recommendations, recommendations.c.served_day, settings.slate_retention_days),
    )


def purge_chunk(connection: Connection, rule: Rule, today: int, chunk_rows: int = CHUNK_ROWS) -> int:
    """Deletes up to `chunk_rows` of the oldest rows; fewer than that: there are no more."""
    old = rule.day < today - rule.retention_days
    keys = connection.execute(select(*rule.key).where(old).order_by(rule.day).limit(chunk_rows)).all()
    if not keys:
        return 0
    if len(rule.key) == 1:
        chosen: Any = rule.key[0].in_([key[0] for key in keys])
    else:
        chosen = tuple_(*rule.key).in_([tuple(key) for key in keys])
    return connection.execute(delete(rule.table).where(chosen)).rowcount


def purge_late_slates(connection: Connection, since_us: int, chunk_rows: int = CHUNK_ROWS) -> int:
    """Slates of deleted users that reached the database after the deletion had passed (a journal drained late)."""
    late = (
        select(recommendations.c.recommendation_id)
        .select_from(user_state.join(recommendations, recommendations.c.user_key == user_state.c.user_key))
        .where(user_state.c.deleted_at_us >= since_us, recommendations.c.served_at_us <= user_state.c.deleted_at_us)
        .limit(chunk_rows)
    )
    found = list(connection.scalars(late))
    if not found:
        return 0
    connection.execute(delete(recommendation_items).where(recommendation_items.c.recommendation_id.in_(found)))
    return connection.execute(delete(recommendations).where(recommendations.c.recommendation_id.in_(found))).rowcount


class Purge:
    """Give `run` to a TaskOwner. Counts go to `purged_rows_total{table}`, the end of a run to
    `purge_last_success_timestamp_seconds`."""

    def __init__(
        self,
        database: Database,
        settings: FeaturesSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self._database = database
        self._rules = rules(settings)
        self._clock = clock
        self._sleep = sleep
        self._chunk_rows = chunk_rows
        self._purged: Counter = metrics.counter("purged_rows_total", "Rows removed by the daily purge", ["table"])
        self._finished = metrics.gauge("purge_last_success_timestamp_seconds", "When the daily purge last got through")

    def start(self, owner: TaskOwner) -> None:
        owner.start("daily purge", self.run)

    async def run(self) -> None:
        while True:
            try:
                removed = await self.purge_once()
            except DatabaseUnavailable as error:
                _log.warning("the purge stopped early and goes on soon", cause=error.detail)
                await self._sleep(RETRY_S)
                continue
            _log.info("purged", **removed)
            await self._sleep(INTERVAL_S)

    async def purge_once(self) -> dict[str, int]:
        """Rows removed by table. Raises DatabaseUnavailable; the chunks before it stay removed."""
        now_us = int(self._clock() * 1_000_000)
        today = now_us // DAY_US
        removed: dict[str, int] = {}
        for rule in self._rules:
            work = self._chunk_of(lambda connection, rule=rule: purge_chunk(connection, rule, today, self._chunk_rows))
            removed[rule.table.name] = await self._drain(rule.table.name, work)
        late = self._chunk_of(lambda connection: purge_late_slates(connection, now_us - 2 * DAY_US, self._chunk_rows))
        removed[recommendations.name] += await self._drain(recommendations.name, late)
        self._finished.set(self._clock())
        return removed

    def _chunk_of(self, work: Callable[[Connection], int]) -> Callable[[], int]:
        return lambda: self._database.transact(work)

    async def _drain(self, table: str, chunk: Callable[[], int]) -> int:
        total = 0
        while True:
            count = await self._database.run(chunk)
            total += count
            self._purged.labels(table).inc(count)
            if count < self._chunk_rows:
                return total
            await self._sleep(PAUSE_S)
