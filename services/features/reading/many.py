"""Many users' views for a job: one Redis round trip for all of them, and two statements for those whom Redis lacks.

Whom to believe is the same as for a request (`view`). Nothing is written back: a job passes by a million users who were
not asked for in a month, and each written back would push somebody out who is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from sqlalchemy import Connection, and_, false, func, select

from services.features.online.keys import LAST_EVENT_ID, REVISION, ROWS, SYNC_LEASE, history_key, profile_key
from services.features.reading.cached import Cached, decode_history
from services.features.reading.history import MICROSECONDS, history_codes
from services.features.users.profile_cache import Profile, decode
from shared.actions import ActionTable
from shared.contracts.history import UserHistory, pack
from shared.storage.database import Database
from shared.storage.redis import RedisFailure
from shared.storage.tables import events, user_state, users

IN_MOST = 500
"""Users a statement: SQLite takes 32,766 parameters, and an answer holds 2,048 rows of each at most."""


async def read_many_cached(redis: Redis, user_keys: Sequence[str]) -> list[Cached]:
    """One each, in order; empty ones when Redis is away, as if it held nothing."""
    pipe = redis.pipeline(transaction=False)
    for user_key in user_keys:
        pipe.execute_command("HMGET", history_key(user_key), REVISION, ROWS, LAST_EVENT_ID)
    pipe.execute_command("MGET", SYNC_LEASE, *map(profile_key, user_keys))
    try:
        *held, (lease, *profiles) = await pipe.execute(raise_on_error=False)
    except RedisFailure:
        return [Cached() for _ in user_keys]
    return [
        Cached(
            None if isinstance(fields, ResponseError) else decode_history(user_key, fields),
            None if profile is None else decode(profile),
            lease is not None,
        )
        for user_key, fields, profile in zip(user_keys, held, profiles, strict=True)
    ]


def read_many_stored(
    connection: Connection, revisions: dict[str, int | None], *, max_events: int, actions: ActionTable
) -> dict[str, tuple[UserHistory | None, Profile]]:
    """`revisions`: by user, of the rows that Redis held; None: it held none. A history is None where those rows are
    the present ones. Deleted users have an empty one. Users, 500 at most, are all in the answer."""
    wanted = list(revisions)
    profiles = {
        row.user_key: Profile(row.properties, tuple(row.segments), row.updated_at_us)
        for row in connection.execute(
            select(users.c.user_key, users.c.properties, users.c.segments, users.c.updated_at_us).where(
                users.c.user_key.in_(wanted)
            )
        )
    }
    # Before the rows: events that are committed in between are then newer than the revision, and nobody keeps these.
    states: dict[str, Any] = {
        row.user_key: row
        for row in connection.execute(
            select(user_state.c.user_key, user_state.c.revision, user_state.c.deleted_at_us).where(
                user_state.c.user_key.in_(wanted)
            )
        )
    }
    deleted = {key for key, state in states.items() if state.deleted_at_us is not None}
    now = {key: int(states[key].revision) if key in states else 0 for key in wanted}
    present = {key for key, held in revisions.items() if held == now[key] and key not in deleted}
    asked = [key for key in states if key not in present and key not in deleted]
    found = _histories(connection, asked, now, max_events, actions)
    return {
        key: (
            None if key in present else found.get(key, UserHistory(key, revision=now[key], source="database")),
            Profile() if key in deleted else profiles.get(key, Profile()),
        )
        for key in wanted
    }


def _histories(
    connection: Connection,
    user_keys: Sequence[str],
    revisions: Mapping[str, int],
    max_events: int,
    actions: ActionTable,
) -> dict[str, UserHistory]:
    """Of those that have any event: the newest `max_events`, oldest first."""
    if not user_keys:
        return {}
    codes = history_codes(actions)
    place = func.row_number().over(
        partition_by=events.c.user_key, order_by=(events.c.occurred_at_us.desc(), events.c.event_seq.desc())
    )
    newest = (
        select(
            events.c.user_key,
            events.c.item_index,
            events.c.action,
            events.c.occurred_at_us,
            events.c.event_id,
            place.label("place"),
        )
        .where(
            and_(
                events.c.user_key.in_(user_keys),
                events.c.item_index.is_not(None),
                events.c.action.in_(codes) if codes else false(),
            )
        )
        .subquery()
    )
    rows = connection.execute(
        select(newest).where(newest.c.place <= max_events).order_by(newest.c.user_key, newest.c.place.desc())
    ).all()
    found: dict[str, UserHistory] = {}
    begin = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end].user_key == rows[begin].user_key:
            continue
        mine = rows[begin:end]
        times = np.fromiter((row.occurred_at_us for row in mine), np.int64, len(mine)) // MICROSECONDS
        packed = pack([row.item_index for row in mine], [row.action for row in mine], times)
        packed.setflags(write=False)
        key = mine[0].user_key
        found[key] = UserHistory(key, packed, revisions[key], mine[-1].event_id, "database")
        begin = end
    return found


async def read_many(
    redis: Redis, database: Database, user_keys: Sequence[str], *, max_events: int, actions: ActionTable
) -> list[tuple[UserHistory, Profile]]:
    """In the order of `user_keys`. Raises DatabaseUnavailable: a slate from a history that nobody vouches for would be
    stored for a day, where a request's is forgotten with the page."""
    cached = dict(zip(user_keys, await read_many_cached(redis, user_keys), strict=True))
    doubtful = {
        key: None if held.history is None else held.history.revision
        for key, held in cached.items()
        if not (held.lease and held.history is not None and held.profile is not None)
    }

    def read(part: dict[str, int | None]) -> dict[str, tuple[UserHistory | None, Profile]]:
        with database.read() as connection:
            return read_many_stored(connection, part, max_events=max_events, actions=actions)

    stored: dict[str, tuple[UserHistory | None, Profile]] = {}
    listed = list(doubtful)
    for start in range(0, len(listed), IN_MOST):
        stored |= await database.run(read, {key: doubtful[key] for key in listed[start : start + IN_MOST]})
    found = []
    for key in user_keys:
        held = cached[key]
        history, profile = stored.get(key, (held.history, held.profile or Profile()))
        found.append((history or held.history or UserHistory(key), profile))
    return found
