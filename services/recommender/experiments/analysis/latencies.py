"""How sure the variants' latency quantiles are: a sample of slates a day, and a bootstrap over its users.

The quantiles themselves come from all slates (`quality`); their lift and its interval from the sample, because a
bootstrap needs every slate with its user. The sample is drawn by the random end of recommendation ids, so it favours
neither an hour nor a user. Worked out with the newest day, never when a page is asked for.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, func, insert, select, update

from services.recommender.experiments.analysis.scope import DAY_US, Scope
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.slate_quality import QUANTILES
from services.recommender.experiments.statistics.quantiles import Clustered, QuantileLift, quantile_lifts
from shared.storage.tables import experiment_latency_daily, experiment_slates

SAMPLED = 1_000
"""Slates a day and variant."""
POOLED_DAYS = 28
DRAWS = 400
"""Of at most SAMPLED x POOLED_DAYS slates a variant; the ends of an interval of 95 % lie within 10 of 400 draws."""
_HEX = 4
_slates, _table = experiment_slates, experiment_latency_daily
Sample = Mapping[str, Sequence[int]]
"""`us`: took; `unit`: a number a user, the same on every day."""


def write(connection: Connection, scope: Scope, day: int) -> None:
    """The day's sample."""
    connection.execute(delete(_table).where(scope.mine(_table), _table.c.day == day))
    key = {"experiment": scope.experiment, "phase": scope.phase, "day": day}
    rows = [
        {**key, "variant": variant, "sample": _sample(connection, scope, day, variant, slates), "lifts": []}
        for variant, slates in _slates_of(connection, scope, day)
    ]
    if rows:
        connection.execute(insert(_table), rows)


def compare(connection: Connection, scope: Scope, day: int, registered: RegisteredExperiment) -> None:
    """The lifts of the POOLED_DAYS that end with this one, kept beside its sample."""
    mine = and_(scope.mine(_table), _table.c.day == day)
    for variant, lifts in _lifts(connection, scope, day, registered).items():
        connection.execute(update(_table).where(mine, _table.c.variant == variant).values(lifts=lifts))


def _answered(scope: Scope, day: int, *columns: Any) -> Select[Any]:
    start, end = scope.range_us(day)
    return select(*columns).where(
        scope.mine(_slates),
        _slates.c.served_day.between(start // DAY_US, (end - 1) // DAY_US),
        _slates.c.served_at_us >= start,
        _slates.c.served_at_us < end,
        _slates.c.failed.is_(False),
        _slates.c.took_us.is_not(None),  # an imported log has none
    )


def _slates_of(connection: Connection, scope: Scope, day: int) -> list[tuple[str, int]]:
    query = _answered(scope, day, _slates.c.variant, func.count()).group_by(_slates.c.variant)
    return [(str(variant), int(slates)) for variant, slates in connection.execute(query)]


def _sample(connection: Connection, scope: Scope, day: int, variant: str, slates: int) -> dict[str, list[int]]:
    query = _answered(scope, day, _slates.c.took_us, _slates.c.unit).where(_slates.c.variant == variant)
    if slates > SAMPLED:
        below = f"{round(SAMPLED / slates * 16**_HEX):0{_HEX}x}"
        query = query.where(func.substr(_slates.c.recommendation_id, -_HEX) < below)
    rows = connection.execute(query).all()
    return {"us": [row.took_us for row in rows], "unit": [zlib.crc32(row.unit.encode()) for row in rows]}


def _lifts(
    connection: Connection, scope: Scope, day: int, registered: RegisteredExperiment
) -> dict[str, list[dict[str, Any]]]:
    query = select(_table.c.variant, _table.c.sample).where(
        scope.mine(_table), _table.c.day.between(day - POOLED_DAYS + 1, day)
    )
    pooled: dict[str, tuple[list[int], list[int]]] = {}
    for row in connection.execute(query):
        took, units = pooled.setdefault(row.variant, ([], []))
        took += row.sample["us"]
        units += row.sample["unit"]
    events = {variant: Clustered(*columns) for variant, columns in pooled.items()}
    control = events.pop(registered.definition.control.key, None)
    if control is None:
        return {}
    return {
        variant: [
            _row(q, lift)
            for q, lift in zip(
                QUANTILES,
                quantile_lifts(control, treatment, QUANTILES, alpha=registered.plan.alpha, draws=DRAWS),
                strict=True,
            )
        ]
        for variant, treatment in events.items()
    }


def _row(q: float, lift: QuantileLift) -> dict[str, Any]:
    numbers = {"lift": lift.estimate, "low": lift.low, "high": lift.high}
    known = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"q": q, **known, "problem": None if lift.problem is None else str(lift.problem.value)}
