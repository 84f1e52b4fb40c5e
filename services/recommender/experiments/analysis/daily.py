"""Writes `experiment_daily`: sufficient statistics of every variant and segment as of the end of a day."""

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


def write(connection: Connection, scope: Scope, day: int, metrics: Sequence[Metric]) -> None:
    """Rows of other metrics stay: were a build to die before its newest day, the report has all of the day before."""
    units = _units(connection, scope, day)
    with unit_now(connection, scope, day, metrics) as now:
        found = sums(connection, now, metrics)
    rows = [_row(scope, day, UNITS, cell, counts) for cell, counts in units.items()]
    for metric in metrics:
        cells = found[metric.key]
        rows += [_row(scope, day, metric.key, cell, {"n": n["n"], **cells.get(cell, {})}) for cell, n in units.items()]
    written = experiment_daily.c.metric.in_([UNITS, *(metric.key for metric in metrics)])
    mine = and_(scope.mine(experiment_daily), experiment_daily.c.day == day)
    connection.execute(delete(experiment_daily).where(mine, written))
    if rows:
        connection.execute(insert(experiment_daily), rows)


def _units(connection: Connection, scope: Scope, day: int) -> dict[Cell, dict[str, int]]:
    start, end = scope.range_us(day)
    cell = (exposures.c.variant, exposures.c.segment)
    query = (
        select(
            *cell,
            func.count().label("n"),
            func.sum(case((exposures.c.first_at_us >= start, 1), else_=0)).label("new"),
            func.sum(case((exposures.c.simulated, 1), else_=0)).label("simulated"),
        )
        .where(and_(scope.mine(exposures), exposures.c.first_at_us < end, counted(scope)))
        .group_by(*cell)
    )
    return {
        (row.variant, row.segment): {"n": int(row.n), "new": int(row.new), "simulated": int(row.simulated)}
        for row in connection.execute(query)
    }


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
