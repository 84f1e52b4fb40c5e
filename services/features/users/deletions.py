"""Deletions in the database: the request, its receipts, and the rows that go.

A request hides the user at once (profile gone, `deleted_at_us` set, history empty by a new revision); the rows follow
in chunks, each its own transaction, so that a crash in between only means going on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, delete, desc, select, update

from services.features.users.merge import merged_visitors
from shared.errors import NotFound
from shared.storage.database import Database
from shared.storage.statements import delete_rows, upsert
from shared.storage.tables import (
    batch_slates,
    deletions,
    events,
    experiment_excluded_units,
    experiment_slates,
    experiment_unit_days,
    exposures,
    feedback,
    models,
    recommendation_items,
    recommendations,
    user_state,
    users,
)

STORES = ("mysql", "redis", "latents", "batch_slates", "logs", "models")
CHUNK_ROWS = 2000
MODELS_NAMED = 1000
Receipt = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Deletion:
    """`receipts` maps a store to `{state: pending|done|not_kept|named, …}`. Times are microseconds since 1970 UTC."""

    deletion_id: str
    user_key: str
    requested_at_us: int
    finished_at_us: int | None
    receipts: Mapping[str, Receipt]


def request_deletion(connection: Connection, user_key: str, now_us: int) -> str:
    """The deletion_id; that of the deletion under way or done when the user is deleted already. Raises NotFound."""
    state = connection.execute(
        select(user_state).where(user_state.c.user_key == user_key).with_for_update()
    ).one_or_none()
    known = connection.scalar(select(users.c.user_key).where(users.c.user_key == user_key))
    if state is None and known is None:
        raise NotFound("there is no such user_id")
    if state is not None and state.deleted_at_us is not None:
        last = select(deletions.c.deletion_id).where(deletions.c.user_key == user_key)
        found = connection.scalar(last.order_by(desc(deletions.c.requested_at_us)).limit(1))
        if found is not None:
            return str(found)
    deletion_id = f"del_{secrets.token_hex(12)}"
    profiles = connection.execute(delete(users).where(users.c.user_key == user_key)).rowcount
    receipts: dict[str, Receipt] = {store: {"state": "pending"} for store in STORES}
    receipts["mysql"]["removed"] = {"users": profiles}
    rows = [
        {"user_key": key, "revision": 1, "deleted_at_us": now_us, "dirty_since_us": now_us}
        for key in [user_key, *merged_visitors(connection, user_key)]
    ]
    upsert(
        connection,
        user_state,
        rows,
        lambda offered: {
            "revision": user_state.c.revision + offered.revision,
            "deleted_at_us": offered.deleted_at_us,
            "dirty_since_us": offered.dirty_since_us,
        },
    )
    connection.execute(
        deletions.insert().values(
            deletion_id=deletion_id,
            user_key=user_key,
            requested_at_us=now_us,
            receipts=receipts,
        )
    )
    return deletion_id


def get_deletion(connection: Connection, deletion_id: str) -> Deletion:
    """Raises NotFound."""
    row = connection.execute(select(deletions).where(deletions.c.deletion_id == deletion_id)).one_or_none()
    if row is None:
        raise NotFound("there is no such deletion_id")
    return Deletion(*row)


def unfinished(connection: Connection, limit: int) -> list[Deletion]:
    """Oldest first."""
    rows = connection.execute(
        select(deletions).where(deletions.c.finished_at_us.is_(None)).order_by(deletions.c.requested_at_us).limit(limit)
    )
    return [Deletion(*row) for row in rows]


def record(connection: Connection, deletion_id: str, store: str, receipt: Receipt, now_us: int) -> None:
    """Writes one store's receipt; the last one also finishes the deletion."""
    row = connection.execute(
        select(deletions.c.receipts).where(deletions.c.deletion_id == deletion_id).with_for_update()
    ).one()
    receipts = {**row.receipts, store: receipt}
    finished = all(entry["state"] != "pending" for entry in receipts.values())
    connection.execute(
        update(deletions)
        .where(deletions.c.deletion_id == deletion_id)
        .values(receipts=receipts, finished_at_us=now_us if finished else None)
    )


def subject_keys(connection: Connection, deletion: Deletion) -> list[str]:
    """The user and the visitors that were merged into it."""
    return [deletion.user_key, *merged_visitors(connection, deletion.user_key)]


def remove_rows(database: Database, user_key: str, stop: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """Deletes everything that happened to this user; counts by table. Blocking. `stop`: asked between chunks."""
    removed = {"events": 0, "feedback": 0, "recommendations": 0, "exposures": 0, "experiment_slates": 0}
    removed["experiment_unit_days"] = _remove_analysed(database, user_key, stop)
    removed["events"] = _remove(database, events.c.user_key, user_key, stop, CHUNK_ROWS)
    removed["recommendations"] = _remove_recommendations(database, user_key, stop)
    removed["experiment_slates"] = _remove(database, experiment_slates.c.unit, user_key, stop)
    removed["batch_slates"] = _remove(database, batch_slates.c.user_key, user_key, stop)
    removed["exposures"] = _remove(database, exposures.c.unit, user_key, stop)
    with database.write() as connection:
        removed["feedback"] = connection.execute(delete(feedback).where(feedback.c.user_key == user_key)).rowcount
    return removed


def models_before(connection: Connection, requested_at_us: int) -> list[str]:
    """Models that may have learned from this user."""
    trained = select(models.c.version).where(models.c.kind == "model", models.c.created_at_us <= requested_at_us)
    return list(connection.scalars(trained.order_by(desc(models.c.created_at_us)).limit(MODELS_NAMED)))


def _remove(
    database: Database, owner: Column[str], user_key: str, stop: Callable[[], bool], chunk_rows: int = CHUNK_ROWS // 10
) -> int:
    """From the table of `owner`, the column that says whose a row is."""
    table, total = owner.table, 0
    own = select(*table.primary_key).where(owner == user_key).limit(chunk_rows)
    while not stop():
        with database.write() as connection:
            page = connection.execute(own).all()
            total += delete_rows(connection, table, page)
        if len(page) < chunk_rows:
            break
    return total


def _remove_analysed(database: Database, user_key: str, stop: Callable[[], bool]) -> int:
    """What analyses keep a unit. Their keys begin with experiment and phase, and the exposures, which go last, say
    which; sums over units stay, as nobody can be read out of them."""
    total = 0
    met = select(exposures.c.experiment, exposures.c.phase).where(exposures.c.unit == user_key).distinct()
    with database.read() as connection:
        pairs = connection.execute(met).all()
    for experiment, phase in pairs:
        if stop():
            break
        with database.write() as connection:
            days = _analysed_days(connection, experiment, phase)
            for table, more in (
                (experiment_unit_days, [experiment_unit_days.c.day.in_(days)]),
                (experiment_excluded_units, []),
            ):
                columns = table.c
                mine = (columns.experiment == experiment, columns.phase == phase, columns.unit == user_key)
                total += connection.execute(delete(table).where(*mine, *more)).rowcount
    return total


def _analysed_days(connection: Connection, experiment: str, phase: int) -> list[int]:
    """From one day to the next by the key's front: without its days a unit is found by reading the whole experiment."""
    table = experiment_unit_days
    days: list[int] = []
    mine = select(table.c.day).where(table.c.experiment == experiment, table.c.phase == phase)
    day = connection.scalar(mine.order_by(table.c.day).limit(1))
    while day is not None:
        days.append(day)
        day = connection.scalar(mine.where(table.c.day > day).order_by(table.c.day).limit(1))
    return days


def _remove_recommendations(database: Database, user_key: str, stop: Callable[[], bool]) -> int:
    """Slots first: a crash in between leaves a slate without slots, which the next run still finds."""
    key, total = recommendations.c.recommendation_id, 0
    while not stop():
        with database.write() as connection:
            own = select(key).where(recommendations.c.user_key == user_key).limit(CHUNK_ROWS // 10)
            page = list(connection.scalars(own))
            if page:
                slots = recommendation_items.c.recommendation_id.in_(page)
                connection.execute(delete(recommendation_items).where(slots))
                total += connection.execute(delete(recommendations).where(key.in_(page))).rowcount
        if len(page) < CHUNK_ROWS // 10:
            break
    return total
