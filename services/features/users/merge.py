"""A visitor turns out to be a user: what the visitor did becomes the user's, now and for events yet to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, delete, or_, select, update

from shared.errors import Conflict
from shared.storage.statements import upsert
from shared.storage.tables import events, feedback, recommendations, user_state

CHUNK_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Merged:
    """`changed` False: everything had been moved before. `feedback` counts the visitor's that the user now has."""

    changed: bool
    events: int
    feedback: int
    recommendations: int


def merge_visitor(connection: Connection, visitor_key: str, into: str, now_us: int) -> Merged:
    """One transaction; doing it again changes nothing. Exposures stay the visitor's: who met what as whom is what an
    analysis counts, and a row moved onto the user's own could only make a multi-variant unit of an honest one.

    Raises Conflict for a deleted user and for a visitor that belongs to another user."""
    states = _lock(connection, (visitor_key, into))
    visitor, user = states.get(visitor_key), states.get(into)
    if (user is not None and user.deleted_at_us is not None) or (visitor and visitor.deleted_at_us is not None):
        raise Conflict("this user was deleted; PUT the user_id again before merging into it")
    if visitor is not None and visitor.merged_into not in (None, into):
        raise Conflict("this visitor was merged into another user_id already")
    moved = _move(connection, events, events.c.event_seq, visitor_key, into)
    kept = _move_feedback(connection, visitor_key, into)
    slates = _move(connection, recommendations, recommendations.c.recommendation_id, visitor_key, into)
    changed = visitor is None or visitor.merged_into is None or moved + kept + slates > 0
    if changed:
        rows = [
            {"user_key": key, "revision": 1, "dirty_since_us": now_us, "merged_into": target}
            for key, target in ((visitor_key, into), (into, None))
        ]
        upsert(
            connection,
            user_state,
            rows,
            lambda offered: {
                "revision": user_state.c.revision + offered.revision,
                "dirty_since_us": offered.dirty_since_us,
                "merged_into": offered.merged_into,
            },
        )
    return Merged(changed, moved, kept, slates)


def merged_visitors(connection: Connection, user_key: str) -> list[str]:
    """The visitors that became this user. Rare question, no index: a scan of user_state by deletions and exports."""
    return list(connection.scalars(select(user_state.c.user_key).where(user_state.c.merged_into == user_key)))


def _lock(connection: Connection, user_keys: Sequence[str]) -> dict[str, Row[Any]]:
    """In key order, as every writer of several users locks them."""
    rows = connection.execute(
        select(user_state).where(user_state.c.user_key.in_(user_keys)).order_by(user_state.c.user_key).with_for_update()
    )
    return {row.user_key: row for row in rows}


def _move(connection: Connection, table: Table, key: Any, visitor_key: str, into: str) -> int:
    """In chunks of the primary key: a bot's million events would not fit into one statement's time-out."""
    moved = 0
    while True:
        page = list(connection.scalars(select(key).where(table.c.user_key == visitor_key).limit(CHUNK_ROWS)))
        if page:
            connection.execute(update(table).where(key.in_(page)).values(user_key=into))
            moved += len(page)
        if len(page) < CHUNK_ROWS:
            return moved


def _move_feedback(connection: Connection, visitor_key: str, into: str) -> int:
    """Of two for one item and type the newer one stays, and the event of the other leaves the history."""
    theirs = connection.execute(select(feedback).where(feedback.c.user_key == visitor_key)).all()
    if not theirs:
        return 0
    own = {
        (row.item_index, row.feedback_type): row
        for row in connection.execute(select(feedback).where(feedback.c.user_key == into))
    }
    moved, superseded = [], []
    for row in theirs:
        rival = own.get((row.item_index, row.feedback_type))
        if rival is not None and rival.updated_at_us >= row.updated_at_us:
            superseded.append(row.event_id)
            continue
        if rival is not None:
            superseded.append(rival.event_id)
        moved.append({**row._mapping, "user_key": into})
    connection.execute(delete(feedback).where(feedback.c.user_key == visitor_key))
    upsert(connection, feedback, moved, ("value", "event_id", "updated_at_us"))
    for start in range(0, len(superseded), CHUNK_ROWS):
        chunk = superseded[start : start + CHUNK_ROWS]
        mine = or_(events.c.user_key == into, events.c.user_key == visitor_key)
        connection.execute(delete(events).where(and_(events.c.event_id.in_(chunk), mine)))
    return len(moved)
