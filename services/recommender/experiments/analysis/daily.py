"""Writes `experiment_daily`: sufficient statistics of every variant and segment as of the end of each of some days."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, insert, select

from services.recommender.experiments.analysis.scope import Scope
from services.recommender.experiments.analysis.unit_days import counted
from services.recommender.experiments.analysis.unit_now import Cell, sums, unit_now
from services.recommender.experiments.assembly import UNITS
from services.recommender.experiments.metrics import Metric
from shared.storage.tables import experiment_daily, exposures


def write(
    connection: Connection, scope: Scope, first: int, days: Sequence[int], whole: int, metrics: Sequence[Metric]
) -> None:
    """`first`: the experiment's first day. `days` ascending. On the day `whole` all metrics; else the first one, which
    is all that the chart by day needs. Rows of other metrics stay: were a build to die before its newest day, the
    report has all of the day before."""
    wanted = [(day, metric) for day in days for metric in (metrics if day == whole else metrics[:1])]
    with unit_now(connection, scope, first, wanted) as now:
        found = sums(connection, now)
    units = _units(connection, scope, days)
    rows = []
    for day in days:
        rows += [_row(scope, day, UNITS, cell, counts) for cell, counts in units[day].items()]
        mine = and_(scope.mine(experiment_daily), experiment_daily.c.day == day)
        written = [UNITS, *(metric.key for one, metric in wanted if one == day)]
        connection.execute(delete(experiment_daily).where(mine, experiment_daily.c.metric.in_(written)))
    for day, metric in wanted:
        cells = found[day, metric.key]
        named = units[day].items()
        rows += [_row(scope, day, metric.key, cell, {"n": n["n"], **cells.get(cell, {})}) for cell, n in named]
    if rows:
        connection.execute(insert(experiment_daily), rows)


def _units(connection: Connection, scope: Scope, days: Sequence[int]) -> dict[int, dict[Cell, dict[str, int]]]:
    """{day: {cell: counts}}: one pass counts between the bounds of the days, and sums make the days of it."""
    bounds = sorted({bound for day in days for bound in scope.range_us(day)})
    at, cell = exposures.c.first_at_us, (exposures.c.variant, exposures.c.segment)
    before = case(*[(at < bound, place) for place, bound in enumerate(bounds)]).label("before")
    simulated = func.sum(case((exposures.c.simulated, 1), else_=0)).label("simulated")
    query = (
        select(*cell, before, func.count().label("n"), simulated)
        .where(scope.mine(exposures), at < bounds[-1], counted(scope))
        .group_by(*cell, "before")
    )
    found: dict[int, dict[Cell, dict[str, int]]] = {day: {} for day in days}
    for row in connection.execute(query):
        for day in days:
            start, end = scope.range_us(day)
            if bounds[row.before] > end:
                continue
            counts = found[day].setdefault((row.variant, row.segment), {"n": 0, "new": 0, "simulated": 0})
            counts["n"] += int(row.n)
            counts["new"] += int(row.n) if bounds[row.before] > start else 0
            counts["simulated"] += int(row.simulated)
    return found


def _row(scope: Scope, day: int, metric: str, cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "experiment": scope.experiment,
        "phase": scope.phase,
        "day": day,
        "metric": metric,
        "variant": cell[0],
        "segment": cell[1],
        "sums": found,
    }
