"""One transaction of events: the rows, their items, the users' revisions and marks, the daily counts.

Statements are counted by the group, not by the event: 2,000 events are about a dozen round trips.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.features.ingest.marks import Mark
from services.features.ingest.rows import EventRow, Outcome, WriteResult
from services.features.items.allocate import ensure_items
from services.features.online.store import Addition
from services.features.reading.history import MICROSECONDS, history_codes
from shared.actions import ActionTable
from shared.errors import Overloaded
from shared.storage.database import Database
from shared.storage.statements import upsert
from shared.storage.tables import events, item_daily, user_state

# SQLite takes 32,766 parameters a statement, and MySQL's optimiser ranges of this many.
CHUNK = 1000
ATTEMPTS = 5
_HISTORY_ROW = struct.Struct("<ibq")  # shared.contracts.history.HISTORY_ROW


def commit_events(database: Database, rows: Sequence[EventRow], actions: ActionTable, now_us: int) -> WriteResult:
    """`write_events` in a transaction of its own, again when another process wrote one of the event ids meanwhile.
    Raises DatabaseUnavailable."""
    for _ in range(ATTEMPTS):
        try:
            return database.transact(lambda connection: write_events(connection, rows, actions, now_us=now_us))
        except IntegrityError:
            continue  # the next look finds that event and calls ours a duplicate
    raise Overloaded("the same events are being written again and again by other processes", retry_after_s=1.0)


def write_events(connection: Connection, rows: Sequence[EventRow], actions: ActionTable, *, now_us: int) -> WriteResult:
    """Within the caller's transaction. `now_us` marks users as dirty. Raises IntegrityError when another transaction
    committed one of the event ids since this one looked; roll back and call again."""
    outcomes: list[Outcome] = ["duplicate"] * len(rows)
    fresh = _fresh(connection, rows)
    # Items before users: the order in which every writer takes its locks.
    indexes = ensure_items(connection, [row.item_id for _, row in fresh if row.item_id is not None], now_us=now_us)
    owners = lock_users(connection, {row.user_key for _, row in fresh})
    written: list[tuple[EventRow, Row[Any]]] = []
    for place, row in fresh:
        owner = owners[row.user_key]
        if owner.deleted_at_us is not None:
            outcomes[place] = "refused"
            continue
        outcomes[place] = "accepted"
        written.append((row, owner))
    if not written:
        return WriteResult(tuple(outcomes))
    connection.execute(insert(events), [_columns(row, owner.user_key, indexes) for row, owner in written])
    _count_days(connection, (row for row, _ in written), indexes)
    codes = set(history_codes(actions))
    changed: dict[str, list[EventRow]] = {}
    states = {owner.user_key: owner for _, owner in written}
    for row, owner in written:
        if row.item_id is not None and row.action in codes:
            changed.setdefault(owner.user_key, []).append(row)
    _raise_revisions(connection, changed, now_us)
    additions = tuple(
        _addition(user_key, states[user_key].revision + 1, new, indexes) for user_key, new in changed.items()
    )
    marks = tuple(Mark(row.user_key, row.revision, states[row.user_key].dirty_since_us or now_us) for row in additions)
    return WriteResult(tuple(outcomes), additions, marks)


def _fresh(connection: Connection, rows: Sequence[EventRow]) -> list[tuple[int, EventRow]]:
    """Rows, with their places, that are neither in the table nor earlier in `rows`."""
    seen: set[tuple[str, int]] = set()
    for chunk in _chunks([row.event_id for row in rows]):
        found = select(events.c.event_id, events.c.occurred_day).where(events.c.event_id.in_(chunk))
        seen.update((row.event_id, row.occurred_day) for row in connection.execute(found))
    fresh = []
    for place, row in enumerate(rows):
        if row.identity not in seen:
            seen.add(row.identity)
            fresh.append((place, row))
    return fresh


def lock_users(connection: Connection, user_keys: set[str]) -> dict[str, Row[Any]]:
    """user_key -> the state of whoever its events belong to, locked until the commit: the user's own, or that of the
    user a visitor was merged into."""
    states = _locked(connection, user_keys)
    missing = user_keys - states.keys()
    if missing:
        # Made first and locked then, so that two transactions never both believe to be a user's first.
        rows = [{"user_key": key, "revision": 0} for key in sorted(missing)]
        upsert(connection, user_state, rows, lambda _: {"revision": user_state.c.revision})
        states |= _locked(connection, missing)
    targets = {row.merged_into for row in states.values() if row.merged_into is not None}
    merged = _locked(connection, targets - states.keys())
    owners = {**states, **merged}
    return {key: owners.get(row.merged_into, row) if row.merged_into else row for key, row in states.items()}


def _locked(connection: Connection, user_keys: Iterable[str]) -> dict[str, Row[Any]]:
    """In key order, as every writer of several users locks them."""
    found: dict[str, Row[Any]] = {}
    for chunk in _chunks(sorted(user_keys)):
        rows = connection.execute(
            select(user_state).where(user_state.c.user_key.in_(chunk)).order_by(user_state.c.user_key).with_for_update()
        )
        for row in rows:
            found[row.user_key] = row
    return found


def _columns(row: EventRow, user_key: str, indexes: Mapping[str, int]) -> dict[str, Any]:
    event_id, occurred_day = row.identity
    return {
        "event_id": event_id,
        "occurred_day": occurred_day,
        "user_key": user_key,
        "item_index": None if row.item_id is None else indexes[row.item_id],
        "action": row.action,
        "event_value": row.event_value,
        "occurred_at_us": row.occurred_at_us,
        "received_at_us": row.received_at_us,
        "session_id": row.session_id,
        "recommendation_id": row.recommendation_id,
        "position": row.position,
        "impression": None if row.impression is None else list(row.impression),
        "properties": None if row.properties is None else dict(row.properties),
    }


def _count_days(connection: Connection, rows: Iterable[EventRow], indexes: Mapping[str, int]) -> None:
    counts = Counter((row.day, indexes[row.item_id], row.action) for row in rows if row.item_id is not None)
    counted = [
        {"occurred_day": day, "item_index": item, "action": action, "events": count}
        for (day, item, action), count in sorted(counts.items())
    ]
    upsert(connection, item_daily, counted, lambda offered: {"events": item_daily.c.events + offered.events})


def _raise_revisions(connection: Connection, changed: Mapping[str, object], now_us: int) -> None:
    mark = func.coalesce(user_state.c.dirty_since_us, now_us)
    for chunk in _chunks(sorted(changed)):
        connection.execute(
            update(user_state)
            .where(user_state.c.user_key.in_(chunk))
            .values(revision=user_state.c.revision + 1, dirty_since_us=mark)
        )


def _addition(user_key: str, revision: int, rows: list[EventRow], indexes: Mapping[str, int]) -> Addition:
    rows = sorted(rows, key=lambda row: row.occurred_at_us)  # stable: equal times keep the order of event_seq
    # Most additions are one row, for which numpy's set-up is ten times the work.
    packed = b"".join(
        _HISTORY_ROW.pack(indexes[row.item_id], row.action, row.occurred_at_us // MICROSECONDS)
        for row in rows
        if row.item_id is not None
    )
    first, last = rows[0], rows[-1]
    return Addition(user_key, revision, packed, first.occurred_at_us, last.occurred_at_us, last.event_id)


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
