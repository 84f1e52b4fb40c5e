"""What the slates of a day were like, by variant: failures, latency, ILD, novelty, and the items of a sample.

Latencies are a histogram whose steps are at most 1 % of the value above 5 ms: {bucket: requests}. Items are those of at
most `SAMPLED` slates a day and variant, the first by id; the rarefied coverage needs no more, and all slates would be
ten rows a request. Multi-variant units count here: what was served to them was served.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, literal, select

from services.recommender.experiments.analysis.scope import DAY_US, Scope, filled, is_sqlite
from services.recommender.experiments.slate_quality import FALLBACK_RUNGS, STEPS
from shared.storage.tables import (
    experiment_item_daily,
    experiment_quality_daily,
    experiment_slates,
    recommendation_items,
)

SAMPLED = 1_000
_slates = experiment_slates


def write(connection: Connection, scope: Scope, day: int) -> None:
    for table in (experiment_quality_daily, experiment_item_daily):
        connection.execute(delete(table).where(scope.mine(table), table.c.day == day))
    rows = _counts(connection, scope, day)
    if not rows:
        return
    for variant, bucket, requests in _latencies(connection, scope, day):
        rows[variant]["latency"][str(bucket)] = int(requests)
    for variant in rows:
        rows[variant]["sampled"] = _sample(connection, scope, day, variant)
    key = {"experiment": scope.experiment, "phase": scope.phase, "day": day}
    connection.execute(
        insert(experiment_quality_daily), [{**key, "variant": name, "sums": found} for name, found in rows.items()]
    )


def _on(scope: Scope, day: int) -> ColumnElement[bool]:
    start, end = scope.range_us(day)
    return and_(
        scope.mine(_slates),
        _slates.c.served_day.between(start // DAY_US, (end - 1) // DAY_US),
        _slates.c.served_at_us >= start,
        _slates.c.served_at_us < end,
    )


def _counts(connection: Connection, scope: Scope, day: int) -> dict[str, dict[str, Any]]:
    answered = _slates.c.failed.is_(False)

    def count(when: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((when, 1), else_=0))

    query = (
        select(
            _slates.c.variant,
            func.count().label("requests"),
            count(_slates.c.failed.is_(True)).label("failed"),
            count(and_(answered, _slates.c.rung.in_(FALLBACK_RUNGS))).label("fallback"),
            count(and_(answered, _slates.c.degraded.is_(True))).label("degraded"),
            count(and_(answered, _slates.c["items"] == 0)).label("empty"),
            func.count(_slates.c.ild).label("ild_n"),
            func.sum(_slates.c.ild).label("ild"),
            func.count(_slates.c.novelty).label("novelty_n"),
            func.sum(_slates.c.novelty).label("novelty"),
            func.max(_slates.c.served_at_us).label("newest_us"),
        )
        .where(_on(scope, day))
        .group_by(_slates.c.variant)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(query).mappings():
        numbers = {name: value for name, value in row.items() if name != "variant"}
        sums = {name: float(numbers.pop(name) or 0.0) for name in ("ild", "novelty")}
        found[row["variant"]] = {name: int(value) for name, value in numbers.items()} | sums | {"latency": {}}
    return found


def _latencies(connection: Connection, scope: Scope, day: int) -> list[Any]:
    """Buckets are numbered by their lower end in µs."""
    took = _slates.c.took_us
    division = "/" if is_sqlite(connection) else "DIV"
    arms = [(took < end, took.op(division)(step) * step) for end, step in STEPS[:-1]]
    bucket = case(*arms, else_=took.op(division)(STEPS[-1][1]) * STEPS[-1][1]).label("bucket")
    query = select(_slates.c.variant, bucket, func.count()).where(_on(scope, day))
    query = query.where(took.is_not(None))  # an imported log has none, and none is not 0 ms
    return list(connection.execute(query.group_by(_slates.c.variant, "bucket")))


def _sample(connection: Connection, scope: Scope, day: int, variant: str) -> int:
    """Slates in the sample; their items go to `experiment_item_daily`."""
    chosen = (
        select(_slates.c.recommendation_id)
        .where(_on(scope, day), _slates.c.variant == variant, _slates.c["items"] > 0)
        .order_by(_slates.c.recommendation_id)
        .limit(SAMPLED)
        .subquery()
    )
    slots = recommendation_items
    query = (
        select(
            literal(scope.experiment).label("experiment"),
            literal(scope.phase).label("phase"),
            literal(day).label("day"),
            literal(variant).label("variant"),
            slots.c.item_index,
            func.count(slots.c.recommendation_id.distinct()).label("slates"),
        )
        .select_from(chosen.join(slots, slots.c.recommendation_id == chosen.c.recommendation_id))
        .group_by(slots.c.item_index)
    )
    connection.execute(filled(experiment_item_daily, query))
    joined = chosen.join(slots, slots.c.recommendation_id == chosen.c.recommendation_id)
    counting = select(func.count(slots.c.recommendation_id.distinct())).select_from(joined)
    return int(connection.scalar(counting) or 0)
