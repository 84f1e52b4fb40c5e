"""A batch of events into the tables: what `ingest/writer.py` does, by columns.

The same rows come of it: the same duplicates and refusals, the same items, revisions, marks and daily counts, the same
order of locks. What differs is how: rows are tuples for the driver, counts are made by numpy, nothing goes to Redis.
Users stay marked, and the sweeper rebuilds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from sqlalchemy import Connection, Row, func, select, update

from services.features.bulk.event_cells import EventColumns
from services.features.ingest.rows import DAY_US
from services.features.ingest.writer import lock_users
from services.features.items.allocate import ensure_items
from services.features.reading.history import history_codes
from shared.actions import ActionTable
from shared.storage.tables import events, user_state

CHUNK = 1000
_OPTIONAL = ("session_id", "recommendation_id", "position", "impression", "properties")
_NO_ITEM = -1
_COUNT = {
    True: "INSERT INTO item_daily (occurred_day, item_index, action, events) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (occurred_day, item_index, action) DO UPDATE SET events = item_daily.events + excluded.events",
    False: "INSERT INTO item_daily (occurred_day, item_index, action, events) VALUES (%s, %s, %s, %s) "
    "ON DUPLICATE KEY UPDATE events = item_daily.events + VALUES(events)",
}
"""By whether it is SQLite. Rows that are there already are counted up."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """`refused` places in the batch: events of deleted users."""

    accepted: int
    duplicates: int
    refused: npt.NDArray[np.int64]


def write_columns(
    connection: Connection, batch: EventColumns, actions: ActionTable, *, received_at_us: int
) -> BatchResult:
    """Within the caller's transaction. Raises IntegrityError when another process committed one of the event ids since
    this one looked; roll back and call again."""
    days = batch.occurred_at_us // DAY_US
    fresh = ~known(connection, batch.event_id, days)
    duplicates = len(batch) - int(fresh.sum())
    places = np.flatnonzero(fresh)
    # Items before users: the order in which every writer takes its locks.
    mentioned = [item_id for place in places.tolist() if (item_id := batch.item_id[place]) is not None]
    indexes = ensure_items(connection, list(dict.fromkeys(mentioned)), now_us=received_at_us)
    owners = lock_users(connection, {batch.user_key[place] for place in places.tolist()})
    gone = {key for key, owner in owners.items() if owner.deleted_at_us is not None}
    if gone:
        refused = np.array([batch.user_key[place] in gone for place in places.tolist()], bool)
        places, refused_places = places[~refused], places[refused]
    else:
        refused_places = np.empty(0, np.int64)
    if places.size:
        _store(connection, batch, places, indexes, owners, actions, received_at_us)
    return BatchResult(int(places.size), duplicates, refused_places)


def known(connection: Connection, event_ids: Sequence[str], days: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[n] the event is in the table, or earlier in `event_ids`."""
    seen: set[tuple[str, int]] = set()
    for start in range(0, len(event_ids), CHUNK):
        chunk = event_ids[start : start + CHUNK]
        found = select(events.c.event_id, events.c.occurred_day).where(events.c.event_id.in_(chunk))
        seen.update((event_id, day) for event_id, day in connection.execute(found).all())
    verdicts = np.zeros(len(event_ids), bool)
    if not seen and len(set(event_ids)) == len(event_ids):
        return verdicts
    for place, identity in enumerate(zip(event_ids, days.tolist(), strict=True)):
        if identity in seen:
            verdicts[place] = True
        else:
            seen.add(identity)
    return verdicts


def _store(
    connection: Connection, batch: EventColumns, places: npt.NDArray[np.int64], indexes: dict[str, int],
    owners: dict[str, Row[Any]], actions: ActionTable, received_at_us: int,
) -> None:  # fmt: skip
    taken = places.tolist()
    user_keys = [owners[batch.user_key[place]].user_key for place in taken]
    item_ids = [batch.item_id[place] for place in taken]
    items = np.array([_NO_ITEM if item_id is None else indexes[item_id] for item_id in item_ids], np.int64)
    action, at_us = batch.action[places], batch.occurred_at_us[places]
    days = at_us // DAY_US
    columns: dict[str, Iterable[Any]] = {
        "event_id": [batch.event_id[place] for place in taken],
        "occurred_day": days.tolist(),
        "user_key": user_keys,
        "item_index": [None if index == _NO_ITEM else index for index in items.tolist()],
        "action": action.tolist(),
        "event_value": [batch.event_value[place] for place in taken],
        "occurred_at_us": at_us.tolist(),
        "received_at_us": [received_at_us] * len(taken),
    }
    for name in _OPTIONAL:
        values = getattr(batch, name)
        if values is not None:
            chosen = [values[place] for place in taken]
            columns[name] = [_json(each) for each in chosen] if name in ("impression", "properties") else chosen
    _insert(connection, columns)
    _count_days(connection, days, items, action)
    in_history = (items != _NO_ITEM) & np.isin(action, history_codes(actions))
    changed = {user_keys[place] for place in np.flatnonzero(in_history).tolist()}
    _raise_revisions(connection, sorted(changed), received_at_us)


def _insert(connection: Connection, columns: dict[str, Iterable[Any]]) -> None:
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    marks = ", ".join([mark] * len(columns))
    statement = f"INSERT INTO {events.name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  (our own names)
    _execute_many(connection, statement, list(columns.values()))


def _count_days(
    connection: Connection, days: npt.NDArray[np.int64], items: npt.NDArray[np.int64], action: npt.NDArray[np.int64]
) -> None:
    mine = items != _NO_ITEM
    # One number a key, in the order of the key: 22 bits of day, 31 of item_index, 7 of action.
    packed, counts = np.unique((days[mine] << 38) | (items[mine] << 7) | action[mine], return_counts=True)
    columns = (packed >> 38, packed >> 7 & 0x7FFFFFFF, packed & 0x7F, counts)
    _execute_many(connection, _COUNT[connection.dialect.name == "sqlite"], [column.tolist() for column in columns])


def _execute_many(connection: Connection, statement: str, columns: Sequence[Iterable[Any]]) -> None:
    """Rows as tuples: SQLAlchemy's way through a dictionary a row takes as long as SQLite itself."""
    rows = list(zip(*columns, strict=True))
    if rows:
        connection.exec_driver_sql(statement, rows)


def _raise_revisions(connection: Connection, user_keys: Sequence[str], now_us: int) -> None:
    mark = func.coalesce(user_state.c.dirty_since_us, now_us)
    for start in range(0, len(user_keys), CHUNK):
        connection.execute(
            update(user_state)
            .where(user_state.c.user_key.in_(user_keys[start : start + CHUNK]))
            .values(revision=user_state.c.revision + 1, dirty_since_us=mark)
        )


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
