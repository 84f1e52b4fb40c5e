"""Sets and takes back feedback: the row that holds the value, and the event that stands for it in the history."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, select, update

from services.features.ingest.group import now_us
from services.features.ingest.publisher import HistoryPublisher
from services.features.ingest.rows import DAY_US, EventRow
from services.features.ingest.writer import lock_users, write_events
from services.features.items.allocate import ensure_items
from shared.actions import ActionTable
from shared.errors import Conflict
from shared.storage.database import Database
from shared.storage.statements import upsert
from shared.storage.tables import events, feedback, item_daily, items, user_state


@dataclass(frozen=True, slots=True)
class Feedback:
    value: float | None
    updated_at_us: int


class FeedbackService:
    """Async; blocking work goes to the database's threads. Raises DatabaseUnavailable, Conflict."""

    def __init__(
        self,
        database: Database,
        publisher: HistoryPublisher,
        actions: ActionTable,
        *,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._actions = actions
        self._clock_us = clock_us

    async def put(self, user_key: str, item_id: str, kind: str, code: int, value: float | None) -> Feedback:
        """The same value again changes nothing, its time included."""
        at_us = self._clock_us()

        def work(connection: Connection) -> Feedback | int:
            ensure_items(connection, [item_id], now_us=at_us)
            lock_users(connection, {user_key})  # two first PUTs would both find nothing, and both add an event
            found = _find(connection, user_key, item_id, kind)
            if found is not None and found.value == value:
                return Feedback(value, int(found.updated_at_us))
            if found is not None:
                _remove_event(connection, found)
            return self._add(connection, user_key, item_id, kind, code, value, at_us)

        done: Feedback | int = await self._database.run(self._database.transact, work)
        if isinstance(done, Feedback):
            return done
        await self._publisher.republish(user_key, done, at_us)
        return Feedback(value, at_us)

    async def delete(self, user_key: str, item_id: str, kind: str) -> None:
        """Doing it again changes nothing."""
        at_us = self._clock_us()

        def work(connection: Connection) -> int | None:
            found = _find(connection, user_key, item_id, kind)
            if found is None:
                return None
            _remove_event(connection, found)
            same = and_(
                feedback.c.user_key == user_key,
                feedback.c.item_index == found.item_index,
                feedback.c.feedback_type == kind,
            )
            connection.execute(delete(feedback).where(same))
            return _raise_revision(connection, user_key, at_us)

        revision: int | None = await self._database.run(self._database.transact, work)
        if revision is not None:
            await self._publisher.republish(user_key, revision, at_us)

    def _add(
        self,
        connection: Connection,
        user_key: str,
        item_id: str,
        kind: str,
        code: int,
        value: float | None,
        at_us: int,
    ) -> int:
        """The user's revision."""
        row = EventRow(
            event_id=f"feedback-{secrets.token_hex(12)}",
            user_key=user_key,
            item_id=item_id,
            action=code,
            event_value=value,
            occurred_at_us=at_us,
            received_at_us=at_us,
        )
        result = write_events(connection, [row], self._actions, now_us=at_us)
        if result.outcomes != ("accepted",):
            raise Conflict("this user was deleted; PUT the user_id again before giving feedback for it")
        item_index = connection.scalar(select(items.c.item_index).where(items.c.item_id == item_id))
        held = {"user_key": user_key, "item_index": item_index, "feedback_type": kind}
        changed = {"value": value, "event_id": row.event_id, "updated_at_us": at_us}
        upsert(connection, feedback, [held | changed], tuple(changed))
        return _raise_revision(connection, user_key, at_us)


def _find(connection: Connection, user_key: str, item_id: str, kind: str) -> Row[Any] | None:
    """Locked, so that two requests for the same feedback follow each other."""
    return connection.execute(
        select(feedback)
        .join(items, items.c.item_index == feedback.c.item_index)
        .where(feedback.c.user_key == user_key, items.c.item_id == item_id, feedback.c.feedback_type == kind)
        .with_for_update()
    ).one_or_none()


def _raise_revision(connection: Connection, user_key: str, at_us: int) -> int:
    """Also for an action that is no part of histories: that costs one rebuild too many."""
    mine = user_state.c.user_key == user_key
    mark = func.coalesce(user_state.c.dirty_since_us, at_us)
    raised = update(user_state).where(mine).values(revision=user_state.c.revision + 1, dirty_since_us=mark)
    connection.execute(raised)
    return int(connection.execute(select(user_state.c.revision).where(mine)).scalar_one())


def _remove_event(connection: Connection, found: Row[Any]) -> None:
    """The event of the value before leaves the history, and the day's count."""
    mine = and_(events.c.event_id == found.event_id, events.c.user_key == found.user_key)
    gone = connection.execute(select(events.c.occurred_at_us, events.c.action).where(mine)).one_or_none()
    if gone is None:
        return
    connection.execute(delete(events).where(mine))
    connection.execute(
        update(item_daily)
        .where(
            item_daily.c.occurred_day == gone.occurred_at_us // DAY_US,
            item_daily.c.item_index == found.item_index,
            item_daily.c.action == gone.action,
            item_daily.c.events > 0,
        )
        .values(events=item_daily.c.events - 1)
    )
