"""Exposures and experiment slates in the database: the same rows however often and in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, case, func
from sqlalchemy.dialects import mysql, sqlite

from services.recommender.journal.record import US_PER_DAY, ServedSlate
from shared.storage.statements import insert_new
from shared.storage.tables import experiment_slates, exposures

_KEY = ("experiment", "phase", "unit", "variant")
_SMALL = 32_767


def put_experiments(connection: Connection, slates: Sequence[ServedSlate]) -> None:
    """The caller owns the transaction: a slate and its exposure are both there or neither is."""
    _put_exposures(connection, slates)
    insert_new(connection, experiment_slates, [row for slate in slates for row in _slate_rows(slate)])


def _put_exposures(connection: Connection, slates: Sequence[ServedSlate]) -> None:
    """The earliest stays, with the segment and the day that it had: journals of several processes drain in any order.

    Sorted by key, as every writer of several rows locks them.
    """
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (row for slate in slates if not slate.failed for row in _exposure_rows(slate)):
        key = tuple(row[name] for name in _KEY)
        if key not in first or row["first_at_us"] < first[key]["first_at_us"]:
            first[key] = row
    rows = [first[key] for key in sorted(first)]
    if not rows:
        return
    table = exposures.c
    if connection.dialect.name == "sqlite":
        lite = sqlite.insert(exposures)
        earlier = lite.excluded.first_at_us < table.first_at_us
        changes: dict[str, Any] = {name: case((earlier, lite.excluded[name]), else_=table[name]) for name in _LATE}
        changes["first_at_us"] = func.min(lite.excluded.first_at_us, table.first_at_us)
        connection.execute(lite.on_conflict_do_update(index_elements=list(_KEY), set_=changes), rows)
        return
    insert = mysql.insert(exposures)
    earlier = insert.inserted.first_at_us < table.first_at_us
    # In this order: MySQL reads what an assignment before it has set.
    ordered: list[tuple[str, Any]] = [
        (name, case((earlier, insert.inserted[name]), else_=table[name])) for name in _LATE
    ]
    ordered.append(("first_at_us", func.least(insert.inserted.first_at_us, table.first_at_us)))
    connection.execute(insert.on_duplicate_key_update(ordered), rows)


_LATE = ("first_day", "segment", "simulated")


def _exposure_rows(slate: ServedSlate) -> Iterable[dict[str, Any]]:
    for one in slate.experiments:
        yield {
            **{name: one[name] for name in _KEY},
            "first_at_us": slate.served_at_us,
            "first_day": slate.served_at_us // US_PER_DAY,
            "segment": one["segment"],
            "simulated": one["simulated"],
        }


def _slate_rows(slate: ServedSlate) -> Iterable[dict[str, Any]]:
    for one in slate.experiments:
        yield {
            **{name: one[name] for name in _KEY},
            "recommendation_id": slate.recommendation_id,
            "served_at_us": slate.served_at_us,
            "served_day": slate.served_day,
            "took_us": min(slate.took_us, 2**31 - 1),
            "items": min(np.size(slate.item_index), _SMALL),
            "rung": slate.request.get("rung", "nothing"),
            "degraded": len(slate.degraded) > 0,
            "failed": slate.failed,
            "ild": slate.measures.get("ild"),
            "novelty": slate.measures.get("novelty"),
        }
