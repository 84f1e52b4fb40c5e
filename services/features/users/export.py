"""Everything that is kept of a user, as JSON lines: what a person who asks for their data is given.

A line is `{"kind": profile | event | feedback | recommendation | end, …}`. The last one, `end`, counts the others:
without it the export was cut off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Select, select, tuple_

from services.features.users.merge import merged_visitors
from shared.actions import ActionTable
from shared.errors import NotFound
from shared.identity import split_user_key
from shared.storage.database import Database
from shared.storage.tables import events, feedback, items, recommendation_items, recommendations, user_state, users

PAGE_ROWS = 1000
MEDIA_TYPE = "application/x-ndjson"
T = TypeVar("T")
Line = dict[str, Any]
Page = Callable[..., list[tuple[Any, Line]]]


def timestamp(us: int | None) -> str | None:
    """RFC 3339 in UTC, microseconds."""
    if us is None:
        return None
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def export_user(database: Database, actions: ActionTable, user_key: str) -> AsyncIterator[bytes]:
    """Raises NotFound before the first line; holds one page in memory."""
    subjects = await _run(database, lambda connection: _subjects(connection, user_key))
    return _lines(database, actions, subjects)


async def _lines(database: Database, actions: ActionTable, subjects: list[str]) -> AsyncIterator[bytes]:
    counts: dict[str, int] = {}
    pages: tuple[Page, ...] = (_profiles, _events, _feedback, _recommendations)
    for page in pages:
        for user_key in subjects:
            after: Any = None
            while True:
                rows = await _run(database, partial(_page, page, actions, user_key, after))
                for _key, line in rows:
                    counts[line["kind"]] = counts.get(line["kind"], 0) + 1
                if rows:
                    after = rows[-1][0]
                    yield b"".join(orjson.dumps(line) + b"\n" for _key, line in rows)
                if len(rows) < PAGE_ROWS:
                    break
    yield orjson.dumps({"kind": "end", "counts": counts}) + b"\n"


def _page(
    page: Page, actions: ActionTable, user_key: str, after: Any, connection: Connection
) -> list[tuple[Any, Line]]:
    return page(connection, actions, user_key, after)


async def _run(database: Database, work: Callable[[Connection], T]) -> T:
    def read() -> T:
        with database.read() as connection:
            return work(connection)

    return await database.run(read)


def _subjects(connection: Connection, user_key: str) -> list[str]:
    """The user and the visitors merged into it."""
    known = connection.scalar(select(users.c.user_key).where(users.c.user_key == user_key))
    state = connection.execute(select(user_state).where(user_state.c.user_key == user_key)).one_or_none()
    if known is None and (state is None or state.deleted_at_us is not None):
        raise NotFound("there is no such user_id")
    return [user_key, *merged_visitors(connection, user_key)]


def _profiles(connection: Connection, _actions: ActionTable, user_key: str, _after: Any) -> list[tuple[Any, Line]]:
    rows = connection.execute(select(users).where(users.c.user_key == user_key))
    return [
        (
            None,
            {
                "kind": "profile",
                **_who(row.user_key),
                "properties": row.properties,
                "segments": row.segments,
                "created_at": timestamp(row.created_at_us),
                "updated_at": timestamp(row.updated_at_us),
            },
        )
        for row in rows
    ]


def _events(
    connection: Connection, actions: ActionTable, user_key: str, after: tuple[int, int] | None
) -> list[tuple[Any, Line]]:
    key = (events.c.occurred_at_us, events.c.event_seq)
    statement = (
        select(events, items.c.item_id)
        .select_from(events.outerjoin(items, items.c.item_index == events.c.item_index))
        .where(events.c.user_key == user_key)
        .order_by(*key)
        .limit(PAGE_ROWS)
    )
    if after is not None:
        statement = statement.where(events.c.occurred_at_us >= after[0], tuple_(*key) > after)
    return [((row.occurred_at_us, row.event_seq), _event(row, actions)) for row in connection.execute(statement)]


def _event(row: Any, actions: ActionTable) -> Line:
    action = actions.by_code.get(row.action)
    return {
        "kind": "event",
        **_who(row.user_key),
        "event_id": row.event_id,
        "event_type": action.event_type if action is not None else f"code {row.action}",
        "item_id": row.item_id,
        "event_value": row.event_value,
        "occurred_at": timestamp(row.occurred_at_us),
        "received_at": timestamp(row.received_at_us),
        "session_id": row.session_id,
        "recommendation_id": row.recommendation_id,
        "position": row.position,
        "impression": row.impression,
        "properties": row.properties,
    }


def _feedback(
    connection: Connection, _actions: ActionTable, user_key: str, after: tuple[int, str] | None
) -> list[tuple[Any, Line]]:
    key = (feedback.c.item_index, feedback.c.feedback_type)
    statement = (
        select(feedback, items.c.item_id)
        .select_from(feedback.outerjoin(items, items.c.item_index == feedback.c.item_index))
        .where(feedback.c.user_key == user_key)
        .order_by(*key)
        .limit(PAGE_ROWS)
    )
    if after is not None:
        statement = statement.where(feedback.c.item_index >= after[0], tuple_(*key) > after)
    return [
        (
            (row.item_index, row.feedback_type),
            {
                "kind": "feedback",
                **_who(row.user_key),
                "item_id": row.item_id,
                "feedback_type": row.feedback_type,
                "value": row.value,
                "updated_at": timestamp(row.updated_at_us),
            },
        )
        for row in connection.execute(statement)
    ]


def _recommendations(
    connection: Connection, _actions: ActionTable, user_key: str, after: tuple[int, str] | None
) -> list[tuple[Any, Line]]:
    key = (recommendations.c.served_at_us, recommendations.c.recommendation_id)
    statement = select(recommendations).where(recommendations.c.user_key == user_key).order_by(*key).limit(PAGE_ROWS)
    if after is not None:
        statement = statement.where(recommendations.c.served_at_us >= after[0], tuple_(*key) > after)
    slates = connection.execute(statement).all()
    slots = _slots(connection, [row.recommendation_id for row in slates])
    return [
        (
            (row.served_at_us, row.recommendation_id),
            {
                "kind": "recommendation",
                **_who(row.user_key),
                "recommendation_id": row.recommendation_id,
                "scene": row.scene,
                "served_at": timestamp(row.served_at_us),
                "release": row.release,
                "request": row.request,
                "item_ids": slots.get(row.recommendation_id, []),
            },
        )
        for row in slates
    ]


def _slots(connection: Connection, recommendation_ids: Sequence[str]) -> dict[str, list[str]]:
    """Item ids by slate, in the order they were served."""
    statement: Select[Any] = (
        select(recommendation_items.c.recommendation_id, items.c.item_id)
        .select_from(recommendation_items.join(items, items.c.item_index == recommendation_items.c.item_index))
        .where(recommendation_items.c.recommendation_id.in_(recommendation_ids))
        .order_by(recommendation_items.c.recommendation_id, recommendation_items.c.position)
    )
    slots: dict[str, list[str]] = {}
    for recommendation_id, item_id in connection.execute(statement):
        slots.setdefault(recommendation_id, []).append(item_id)
    return slots


def _who(user_key: str) -> Line:
    user_id, visitor_id = split_user_key(user_key)
    return {"user_id": user_id} if user_id is not None else {"visitor_id": visitor_id}
