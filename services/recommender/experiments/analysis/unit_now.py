"""One row a unit that did anything, as of the end of a day, in a temporary table; and the sums over its rows.

`x`, `y`: numerator and denominator since the first exposure; `p`, `q`: the same before it. A unit without a row is a
zero in all four, so it adds to n alone (`daily` counts it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    MetaData,
    String,
    Table,
    and_,
    case,
    func,
    or_,
    select,
    text,
)

from services.recommender.experiments.analysis.scope import SERVED, Scope, filled, in_order, is_sqlite
from services.recommender.experiments.metrics import Amount, Kind, Metric
from shared.storage.columns import NAME
from shared.storage.tables import experiment_unit_days, exposures

NAME_OF_TABLE = "silkrec_unit_now"
Cell = tuple[str, str]
"""Variant, segment."""


@dataclass(frozen=True, slots=True)
class UnitNow:
    table: Table
    basis: str

    def letters(self, place: int, metric: Metric) -> dict[str, ColumnElement[float]]:
        return {letter: self.table.c[f"{letter}{place}"] for letter in _letters(metric)}


@contextmanager
def unit_now(connection: Connection, scope: Scope, day: int, metrics: Sequence[Metric]) -> Iterator[UnitNow]:
    """Dropped at the end. `basis` is what `seen` means: impressions, or served where no unit reports any."""
    basis = "impressions" if _seen(connection, scope, day) else "served"
    columns = [Column(f"{letter}{place}", Double) for place, one in enumerate(metrics) for letter in _letters(one)]
    head = (Column("variant", NAME), Column("segment", String(64)))
    table = Table(NAME_OF_TABLE, MetaData(), *head, *columns, prefixes=["TEMPORARY"])
    _drop(connection)
    table.create(connection)
    try:
        _fill(connection, scope, day, metrics, table, basis)
        yield UnitNow(table, basis)
    finally:
        _drop(connection)


def _drop(connection: Connection) -> None:
    # Without TEMPORARY, MySQL commits whatever transaction is open.
    name = (
        f"TABLE IF EXISTS temp.{NAME_OF_TABLE}"
        if is_sqlite(connection)
        else f"TEMPORARY TABLE IF EXISTS {NAME_OF_TABLE}"
    )
    connection.execute(text(f"DROP {name}"))


def _fill(connection: Connection, scope: Scope, day: int, metrics: Sequence[Metric], table: Table, basis: str) -> None:
    days = experiment_unit_days
    columns: list[ColumnElement[Any]] = []
    for place, metric in enumerate(metrics):
        since = [days.c.day >= 0] if metric.window_days is None else [days.c.day >= 0, days.c.age < metric.window_days]
        for letters, amount in (("xp", metric.numerator), ("yq", metric.denominator)):
            if amount is None:
                continue
            for letter, when in ((letters[0], since), (letters[1], [days.c.day < 0])):
                total = _amount(scope, amount, when, basis)
                if metric.kind is Kind.PROPORTION:
                    total = case((total > 0, 1.0), else_=0.0)
                columns.append(total.label(f"{letter}{place}"))
    unit = (
        select(days.c.unit, *columns)
        .where(scope.mine(days), days.c.day <= day, days.c.action.in_([SERVED, *scope.codes_of(_amounts(metrics))]))
        .group_by(days.c.experiment, days.c.phase, days.c.unit)
        .subquery()
    )
    met = and_(scope.mine(exposures), exposures.c.unit == unit.c.unit)
    numbers = [column for column in unit.c if column.key != "unit"]
    query = select(exposures.c.variant, exposures.c.segment, *numbers).select_from(unit.join(exposures, met))
    query = in_order(connection, query).where(exposures.c.first_at_us < scope.range_us(day)[1])
    connection.execute(filled(table, query))


def _letters(metric: Metric) -> str:
    return "xypq" if metric.kind is Kind.RATIO else "xp"


def _amounts(metrics: Sequence[Metric]) -> list[Amount]:
    return [one for metric in metrics for one in (metric.numerator, metric.denominator) if one]


def _amount(scope: Scope, amount: Amount, when: list[ColumnElement[bool]], basis: str) -> ColumnElement[float]:
    days = experiment_unit_days
    served = amount.of == "seen" and basis == "served"
    column = {"count": days.c.events, "sum": days.c.value, "seen": days.c.seen}[amount.of]
    codes = (SERVED,) if served else scope.codes_of([amount])
    return func.sum(case((and_(days.c.action.in_(codes), *when), column), else_=0.0))


def _seen(connection: Connection, scope: Scope, day: int) -> bool:
    """Whether any unit reported an impression: the first row found ends the search, and served rows are only there on
    days without any."""
    days = experiment_unit_days
    codes = scope.codes_of(one for one in scope.amounts() if one.of == "seen")
    if not codes:
        return True
    mine = and_(scope.mine(days), days.c.day.between(0, day))
    query = select(days.c.unit).where(mine, days.c.action.in_(codes), days.c.seen > 0).limit(1)
    return connection.execute(query).first() is not None


def sums(connection: Connection, now: UnitNow, metrics: Sequence[Metric]) -> dict[str, dict[Cell, dict[str, Any]]]:
    """{metric: {(variant, segment): {"x", "xx", "xp"…, "cap"}}}, without n."""
    caps = {
        place: _cap(connection, now, place, metric.winsorise)
        for place, metric in enumerate(metrics)
        if metric.winsorise
    }
    asked: list[ColumnElement[Any]] = [now.table.c.variant, now.table.c.segment]
    for place, metric in enumerate(metrics):
        asked += [func.sum(one).label(f"{name}_{place}") for name, one in _products(now, place, metric, caps).items()]
    rows = connection.execute(select(*asked).group_by(now.table.c.variant, now.table.c.segment)).mappings().all()
    found: dict[str, dict[Cell, dict[str, Any]]] = {}
    for place, metric in enumerate(metrics):
        names = list(_products(now, place, metric, caps))
        cells = found.setdefault(metric.key, {})
        for row in rows:
            cell = {name: float(row[f"{name}_{place}"] or 0) for name in names}
            cells[row["variant"], row["segment"]] = cell | _facts(now, metric, caps.get(place))
    return found


def _facts(now: UnitNow, metric: Metric, cap: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {} if cap is None else {"cap": cap}
    return facts | ({"basis": now.basis} if metric.denominator and metric.denominator.of == "seen" else {})


def _products(
    now: UnitNow, place: int, metric: Metric, caps: Mapping[int, float | None]
) -> dict[str, ColumnElement[float]]:
    letters = now.letters(place, metric)
    if (cap := caps.get(place)) is not None:
        letters = {name: case((one > cap, cap), else_=one) for name, one in letters.items()}
    pairs = combinations_with_replacement(letters, 2)
    return letters | {a + b: letters[a] * letters[b] for a, b in pairs}


def _cap(connection: Connection, now: UnitNow, place: int, percentile: float) -> float | None:
    """As `outliers.cap_at` of the units above zero, of all variants."""
    x = now.table.c[f"x{place}"]
    count = connection.scalar(select(func.count()).where(or_(x > 0, x < 0))) or 0
    if count == 0:
        return None
    position = percentile * (count - 1)
    low = math.floor(position)
    ordered = select(x).where(or_(x > 0, x < 0)).order_by(x).limit(2).offset(low)
    ends = [float(one) for one in connection.scalars(ordered)]
    return ends[0] + (ends[-1] - ends[0]) * (position - low)
