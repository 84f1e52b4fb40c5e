"""Counts of events by day, item and action: what popularity is made of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, select, tuple_

from shared.contracts.history import Int8, Int32, Int64
from shared.storage.tables import item_daily

CHUNK_ROWS = 50_000
# Rows become Python objects under the interpreter's lock: all 50,000 of MovieLens-100K at once held requests of the
# same process up by 30 ms for 0.3 s, every few seconds.
PACED_ROWS, PAUSE_S = 1000, 0.02


@dataclass(frozen=True, slots=True)
class DailyActions:
    """Columns [n], ordered by (occurred_day, item_index, action). `occurred_day`: days since 1970 UTC."""

    occurred_day: Int32
    item_index: Int32
    action: Int8
    events: Int64


def read_daily_actions(
    connection: Connection, before: DailyActions | None = None, chunk_rows: int = CHUNK_ROWS
) -> DailyActions:
    """`before`: what an earlier call gave. Then only days whose rows or events are others than those are read, in small
    pages with pauses, and `before` itself comes back when there are none.

    Two changes of a day that cancel each other out go unseen; ask without `before` now and then.
    """
    if before is None:
        return _columns(list(_pages(connection, None, chunk_rows, 0.0)))
    changed = _changed_days(before, _totals(connection))
    if not changed:
        return before
    fresh = _columns([chunk for day in changed for chunk in _pages(connection, day, PACED_ROWS, PAUSE_S)])
    kept = ~np.isin(before.occurred_day, changed)
    day, item, action, events = (
        np.concatenate((getattr(before, name)[kept], getattr(fresh, name)))
        for name in ("occurred_day", "item_index", "action", "events")
    )
    order = np.lexsort((action, item, day))
    return DailyActions(day[order], item[order], action[order], events[order])


def _totals(connection: Connection) -> dict[int, tuple[int, int]]:
    """Day to (rows, events): summed up by the database, so it costs this process next to nothing."""
    table = item_daily.c
    rows = connection.execute(
        select(table.occurred_day, func.count(), func.sum(table.events)).group_by(table.occurred_day)
    )
    return {int(day): (int(count), int(events)) for day, count, events in rows}


def _changed_days(before: DailyActions, now: dict[int, tuple[int, int]]) -> list[int]:
    """Ascending; days that are gone as well."""
    days, place, counts = np.unique(before.occurred_day, return_inverse=True, return_counts=True)
    events = np.bincount(place, before.events, len(days)).astype(np.int64)
    known = {
        int(day): (int(count), int(sum_))
        for day, count, sum_ in zip(days.tolist(), counts.tolist(), events.tolist(), strict=True)
    }
    return sorted(day for day in known.keys() | now.keys() if known.get(day) != now.get(day))


def _pages(connection: Connection, day: int | None, chunk_rows: int, pause_s: float) -> Iterator[npt.NDArray[np.int64]]:
    """[rows, 4] by primary key, of one day or of all: each statement is short, whatever the size of the table."""
    table = item_daily.c
    key = (table.occurred_day, table.item_index, table.action)
    page = select(*key, table.events).order_by(*key).limit(chunk_rows)
    if day is not None:
        page = page.where(table.occurred_day == day)
    after: tuple[int, int, int] | None = None
    while True:
        # The first column is compared once more by itself: MySQL derives no range from a row comparison.
        statement = page if after is None else page.where(table.occurred_day >= after[0], tuple_(*key) > after)
        rows = connection.execute(statement).all()
        if rows:
            yield np.array([tuple(row) for row in rows], np.int64)
            after = (rows[-1].occurred_day, rows[-1].item_index, rows[-1].action)
        if len(rows) < chunk_rows:
            return
        time.sleep(pause_s)


def _columns(chunks: list[npt.NDArray[np.int64]]) -> DailyActions:
    day, item, action, events = np.concatenate([np.empty((0, 4), np.int64), *chunks]).T
    return DailyActions(day.astype(np.int32), item.astype(np.int32), action.astype(np.int8), events.copy())
