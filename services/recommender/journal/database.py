"""Served slates in the database: put there once however often it is tried, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from services.recommender.journal.experiments import put_experiments
from services.recommender.journal.record import ServedSlate
from shared.storage.statements import insert_new
from shared.storage.tables import recommendation_items, recommendations, user_state


def put_slates(connection: Connection, slates: Sequence[ServedSlate]) -> int:
    """Inserts what is not there yet, by recommendation_id, with exposures and experiment slates; the caller owns the
    transaction. Returns how many slates were left out because their user was deleted after they were served.

    A slate comes again after a crash, or with other items when a proxy tried a request on two servers: the first stays
    whole, and none of the other's items is put behind its own."""
    deleted = _deleted_users(connection, {slate.user_key for slate in slates})
    kept = [slate for slate in slates if slate.served_at_us > deleted.get(slate.user_key, -1)]
    served = _first_of_each(connection, [slate for slate in kept if not slate.failed])
    insert_new(connection, recommendations, [_slate_row(slate) for slate in served])
    insert_new(connection, recommendation_items, [row for slate in served for row in _item_rows(slate)])
    put_experiments(connection, kept)
    return len(slates) - len(kept)


def load_slate(connection: Connection, recommendation_id: str) -> ServedSlate | None:
    table, items = recommendations.c, recommendation_items.c
    row = connection.execute(select(recommendations).where(table.recommendation_id == recommendation_id)).first()
    if row is None:
        return None
    rows = connection.execute(
        select(items.item_index, items.score, items.propensity, items.source_bits)
        .where(items.recommendation_id == recommendation_id)
        .order_by(items.position)
    ).all()
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    return ServedSlate(
        recommendation_id=row.recommendation_id,
        user_key=row.user_key,
        scene=row.scene,
        served_at_us=row.served_at_us,
        release=row.release,
        model_version=row.model_version,
        index_version=row.index_version,
        took_us=row.took_us,
        degraded=row.degraded,
        request=row.request,
        seed=row.seed or 0,
        item_index=columns[0],
        score=columns[1],
        propensity=columns[2],
        source_bits=columns[3],
    )


def _first_of_each(connection: Connection, slates: Sequence[ServedSlate]) -> list[ServedSlate]:
    first: dict[str, ServedSlate] = {}
    for slate in slates:
        first.setdefault(slate.recommendation_id, slate)
    column = recommendations.c.recommendation_id
    known = set(connection.scalars(select(column).where(column.in_(sorted(first)))))
    return [slate for name, slate in first.items() if name not in known]


def _deleted_users(connection: Connection, user_keys: Iterable[str]) -> dict[str, int]:
    """A journal may outlive its users: what they were shown must not come back after their deletion."""
    query = select(user_state.c.user_key, user_state.c.deleted_at_us).where(
        user_state.c.user_key.in_(sorted(user_keys)), user_state.c.deleted_at_us.is_not(None)
    )
    return {row.user_key: row.deleted_at_us for row in connection.execute(query)}


def _slate_row(slate: ServedSlate) -> dict[str, Any]:
    return {
        "recommendation_id": slate.recommendation_id,
        "user_key": slate.user_key,
        "scene": slate.scene,
        "served_at_us": slate.served_at_us,
        "served_day": slate.served_day,
        "release": slate.release,
        "model_version": slate.model_version,
        "index_version": slate.index_version,
        "took_us": slate.took_us,
        "degraded": list(slate.degraded),
        "request": dict(slate.request),
        "seed": slate.seed,
    }


def _item_rows(slate: ServedSlate) -> list[dict[str, Any]]:
    columns = (np.asarray(slate.item_index), slate.score, slate.propensity, slate.source_bits)
    lists = (np.asarray(column).tolist() for column in columns)
    return [
        {
            "recommendation_id": slate.recommendation_id,
            "position": position,
            "item_index": item_index,
            "score": score,
            "propensity": propensity,
            "source_bits": source_bits,
            "served_day": slate.served_day,
        }
        for position, (item_index, score, propensity, source_bits) in enumerate(zip(*lists, strict=True))
    ]
