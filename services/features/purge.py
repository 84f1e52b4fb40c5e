"""The daily purge: rows past their retention go, in small chunks, so that no writer ever waits long for it.

Nothing is remembered between runs: what is still too old is found again, so a crash only means that the next run goes
on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import Counter
from sqlalchemy import Column, Connection, Table, delete, func, select

from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database
from shared.storage.statements import delete_rows
from shared.storage.tables import (
    events,
    experiment_slates,
    exposures,
    item_daily,
    recommendation_items,
    recommendations,
    user_state,
)

CHUNK_ROWS = 1000
# At 1,000 rows a pause this long the purge deletes at most 10,000 rows a second beside the traffic.
PAUSE_S = 0.1
INTERVAL_S = 24 * 3600.0
RETRY_S = 60.0
DAY_US = 86_400_000_000
_log = get_logger(__name__)


def purge_events(connection: Connection, before_us: int, chunk_rows: int = CHUNK_ROWS) -> int:
    """Retention counts from when an event was received: an imported archive of old years stays as long as a live event.

    Rows came in that order, so the oldest lead the primary key and a chunk looks at no others.
    """
    front = select(events.c.event_seq, events.c.received_at_us).order_by(events.c.event_seq).limit(chunk_rows)
    old = [row.event_seq for row in connection.execute(front) if row.received_at_us < before_us]
    return connection.execute(delete(events).where(events.c.event_seq.in_(old))).rowcount if old else 0


def purge_item_daily(connection: Connection, before_day: int, chunk_rows: int = CHUNK_ROWS) -> int:
    """Counts go once no event of their day or an earlier one is left."""
    oldest = connection.scalar(select(func.min(events.c.occurred_day)))
    cut = before_day if oldest is None else min(before_day, oldest)
    return _purge_days(connection, item_daily, item_daily.c.occurred_day, cut, chunk_rows)


def purge_slates(connection: Connection, before_day: int, chunk_rows: int = CHUNK_ROWS) -> int:
    return _purge_days(connection, recommendations, recommendations.c.served_day, before_day, chunk_rows)


def purge_slots(connection: Connection, before_day: int, chunk_rows: int = CHUNK_ROWS) -> int:
    return _purge_days(connection, recommendation_items, recommendation_items.c.served_day, before_day, chunk_rows)


def purge_experiment_slates(connection: Connection, before_day: int, chunk_rows: int = CHUNK_ROWS) -> int:
    """They go with the slates that they describe. Exposures stay: a unit's first day is needed while anybody looks."""
    return _purge_days(connection, experiment_slates, experiment_slates.c.served_day, before_day, chunk_rows)


def _purge_days(connection: Connection, table: Table, day: Column[int], before_day: int, chunk_rows: int) -> int:
    """Deletes up to `chunk_rows` of the oldest rows; fewer than that: there are no more."""
    key = list(table.primary_key)
    keys = connection.execute(select(*key).where(day < before_day).order_by(day).limit(chunk_rows)).all()
    return delete_rows(connection, table, keys)


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


def purge_late_experiment_slates(connection: Connection, since_us: int, chunk_rows: int = CHUNK_ROWS) -> int:
    return _purge_late(connection, experiment_slates, experiment_slates.c.served_at_us, since_us, chunk_rows)


def purge_late_exposures(connection: Connection, since_us: int, chunk_rows: int = CHUNK_ROWS) -> int:
    return _purge_late(connection, exposures, exposures.c.first_at_us, since_us, chunk_rows)


def _purge_late(connection: Connection, table: Table, at_us: Column[int], since_us: int, chunk_rows: int) -> int:
    """Rows of deleted users, as `purge_late_slates` has them."""
    key = list(table.primary_key)
    late = (
        select(*key)
        .select_from(user_state.join(table, table.c.unit == user_state.c.user_key))
        .where(user_state.c.deleted_at_us >= since_us, at_us <= user_state.c.deleted_at_us)
        .limit(chunk_rows)
    )
    return delete_rows(connection, table, connection.execute(late).all())


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
        self._event_days = settings.event_retention_days
        self._slate_days = settings.slate_retention_days
        self._clock = clock
        self._sleep = sleep
        self._chunk_rows = chunk_rows
        self._purged: Counter = metrics.counter("purged_rows_total", "Rows removed by the daily purge", ["table"])
        self._finished = metrics.gauge(
            "purge_last_success_timestamp_seconds", "When the daily purge last got through", combined="livemax"
        )

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
        events_day, slates_day = today - self._event_days, today - self._slate_days
        removed = {
            "events": await self._drain("events", purge_events, events_day * DAY_US),
            "item_daily": await self._drain("item_daily", purge_item_daily, events_day),
            "recommendation_items": await self._drain("recommendation_items", purge_slots, slates_day),
            "recommendations": await self._drain("recommendations", purge_slates, slates_day),
            "experiment_slates": await self._drain("experiment_slates", purge_experiment_slates, slates_day),
            "late_slates": await self._drain("late_slates", purge_late_slates, now_us - 2 * DAY_US),
            "late_experiment_slates": await self._drain(
                "late_experiment_slates", purge_late_experiment_slates, now_us - 2 * DAY_US
            ),
            "late_exposures": await self._drain("late_exposures", purge_late_exposures, now_us - 2 * DAY_US),
        }
        self._finished.set(self._clock())
        return removed

    async def _drain(self, what: str, purge: Callable[[Connection, int, int], int], before: int) -> int:
        work = partial(_chunk, purge, before, self._chunk_rows)
        total = 0
        while True:
            count: int = await self._database.run(self._database.transact, work)
            total += count
            self._purged.labels(what).inc(count)
            if count < self._chunk_rows:
                return total
            await self._sleep(PAUSE_S)


def _chunk(purge: Callable[[Connection, int, int], int], before: int, chunk_rows: int, connection: Connection) -> int:
    return purge(connection, before, chunk_rows)
