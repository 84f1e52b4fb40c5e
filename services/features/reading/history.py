"""A user's packed history from the database: what fills Redis, and what is read when Redis cannot be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, Select, and_, false, literal, select, true

from shared.actions import ActionTable
from shared.contracts.history import UserHistory, pack
from shared.storage.tables import events, user_state

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """`deleted`: the user asked to be forgotten; the history is then empty whatever rows a purge has yet to reach."""

    history: UserHistory
    deleted: bool


def load_history(connection: Connection, user_key: str, *, max_events: int, actions: ActionTable) -> UserHistory:
    """The newest `max_events` rows, oldest first, with the revision they stand for. Raises DatabaseUnavailable."""
    return load_stored(connection, user_key, max_events=max_events, actions=actions).history


def load_stored(connection: Connection, user_key: str, *, max_events: int, actions: ActionTable) -> StoredHistory:
    """Rows and revision in one statement: under READ COMMITTED two would be two snapshots, and rows newer than their
    revision would be appended to Redis a second time."""
    found = connection.execute(_statement(user_key, max_events, actions)).all()
    if not found:
        return StoredHistory(UserHistory(user_key, source="database"), deleted=False)
    revision, deleted = int(found[0].revision), found[0].deleted_at_us is not None
    rows = [row for row in found if row.item_index is not None]
    if deleted or not rows:
        return StoredHistory(UserHistory(user_key, revision=revision, source="database"), deleted)
    rows.reverse()
    _revision, _deleted, item, action, time_us, event_id, _seq = zip(*rows, strict=True)
    packed = pack(item, action, np.asarray(time_us, np.int64) // MICROSECONDS)
    packed.setflags(write=False)
    return StoredHistory(UserHistory(user_key, packed, revision, event_id[-1], "database"), deleted=False)


def history_codes(actions: ActionTable) -> list[int]:
    """Codes of the actions that are part of a history, ascending."""
    return sorted(action.code for action in actions if action.in_history)


def _statement(user_key: str, max_events: int, actions: ActionTable) -> Select[tuple[object, ...]]:
    newest = (
        select(events.c.item_index, events.c.action, events.c.occurred_at_us, events.c.event_id, events.c.event_seq)
        .where(
            events.c.user_key == user_key,
            events.c.item_index.is_not(None),
            events.c.action.in_(history_codes(actions)) if history_codes(actions) else false(),
        )
        .order_by(events.c.occurred_at_us.desc(), events.c.event_seq.desc())
        .limit(max_events)
        .subquery()
    )
    return (
        select(
            user_state.c.revision,
            user_state.c.deleted_at_us,
            newest.c.item_index,
            newest.c.action,
            newest.c.occurred_at_us,
            newest.c.event_id,
            newest.c.event_seq,
        )
        .select_from(user_state.outerjoin(newest, and_(true(), literal(1) == 1)))
        .where(user_state.c.user_key == user_key)
        .order_by(newest.c.occurred_at_us.desc(), newest.c.event_seq.desc())
    )
