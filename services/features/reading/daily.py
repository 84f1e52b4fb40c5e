"""Counts of events by day, item and action: what popularity is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, select, tuple_

from shared.contracts.history import Int8, Int32, Int64
from shared.storage.tables import item_daily

CHUNK_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class DailyActions:
    """Columns [n], ordered by (occurred_day, item_index, action). `occurred_day`: days since 1970 UTC."""

    occurred_day: Int32
    item_index: Int32
    action: Int8
    events: Int64


def read_daily_actions(connection: Connection, chunk_rows: int = CHUNK_ROWS) -> DailyActions:
    """Pages by primary key: each statement is short, whatever the size of the table."""
    table = item_daily.c
    key = (table.occurred_day, table.item_index, table.action)
    page = select(*key, table.events).order_by(*key).limit(chunk_rows)
    chunks = [np.empty((0, 4), np.int64)]
    after: tuple[int, int, int] | None = None
    while True:
        # The first column is compared once more by itself: MySQL derives no range from a row comparison.
        statement = page if after is None else page.where(table.occurred_day >= after[0], tuple_(*key) > after)
        rows = connection.execute(statement).all()
        if rows:
            chunks.append(np.array([tuple(row) for row in rows], np.int64))
            after = (rows[-1].occurred_day, rows[-1].item_index, rows[-1].action)
        if len(rows) < chunk_rows:
            break
    day, item, action, events = np.concatenate(chunks).T
    return DailyActions(day.astype(np.int32), item.astype(np.int32), action.astype(np.int8), events.copy())
