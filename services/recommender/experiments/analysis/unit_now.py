"""One row a unit that did anything, in a temporary table: what it did up to the end of each of some days; and the sums
over its rows.

`x`, `y`: numerator and denominator since the first exposure; `p`, `q`: the same before it. A unit without a row is a
zero in all four, so it adds to n alone (`daily` counts it). All days are taken in one pass: beside the walk over what
units did (0.55 µs a row in MariaDB) another day's column costs 0.07.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from sqlalchemy import (
    BigInteger,
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
RANGE_UNITS = 10_000
"""Units that are grouped at a time: with the columns of 14 days 6 MB, where MariaDB's temporary tables go to disk at 16
(727,000 rows: 0.9 s in memory, 8.0 on disk)."""
Cell = tuple[str, str]
"""Variant, segment."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A metric as of the end of a day. `basis` is what `seen` means: impressions, or served where no unit reported any
    by then. `place` numbers its columns."""

    day: int
    metric: Metric
    basis: str
    place: int
    past: int
    """Number of the columns `p` and `q`, which a metric's days share."""


@dataclass(frozen=True, slots=True)
class UnitNow:
    table: Table
    asked: tuple[Asked, ...]
    scope: Scope

    def letters(self, asked: Asked) -> dict[str, ColumnElement[float]]:
        """A unit first exposed later has no past yet."""
        exposed = self.table.c.first_at_us < self.scope.range_us(asked.day)[1]
        found: dict[str, ColumnElement[float]] = {}
        for letter in _letters(asked.metric):
            if letter in "xy":
                found[letter] = self.table.c[f"{letter}{asked.place}"]
            else:
                found[letter] = case((exposed, self.table.c[f"{letter}{asked.past}"]), else_=0.0)
        return found


@contextmanager
def unit_now(
    connection: Connection, scope: Scope, first: int, wanted: Sequence[tuple[int, Metric]]
) -> Iterator[UnitNow]:
    """Dropped at the end. `first`: the experiment's first day. `wanted` (day, metric), by ascending day."""
    asked = tuple(_asked(connection, scope, wanted))
    names = [f"{letter}{place}" for one in asked for letter, place in _columns(one)]
    columns = [Column(name, Double) for name in dict.fromkeys(names)]
    head = (Column("variant", NAME), Column("segment", String(64)), Column("first_at_us", BigInteger))
    table = Table(NAME_OF_TABLE, MetaData(), *head, *columns, prefixes=["TEMPORARY"])
    _drop(connection)
    table.create(connection)
    try:
        last = wanted[-1][0]
        days = [sign * day for day in range(first, last + 1) for sign in (1, -1)]
        for bounds in _ranges(connection, scope):
            _fill(connection, scope, days, asked, table, bounds)
        yield UnitNow(table, asked, scope)
    finally:
        _drop(connection)


def _asked(connection: Connection, scope: Scope, wanted: Sequence[tuple[int, Metric]]) -> Iterator[Asked]:
    since = _seen_since(connection, scope)
    past: dict[tuple[str, str], int] = {}
    for place, (day, metric) in enumerate(wanted):
        basis = "served" if since is None or since > day else "impressions"
        yield Asked(day, metric, basis, place, past.setdefault((metric.key, basis), place))


def _columns(asked: Asked) -> list[tuple[str, int]]:
    return [(letter, asked.place if letter in "xy" else asked.past) for letter in _letters(asked.metric)]


def _ranges(connection: Connection, scope: Scope) -> Iterator[tuple[str | None, str | None]]:
    """[low, high) of units, None: without end."""
    low: str | None = None
    while True:
        query = select(exposures.c.unit).where(scope.mine(exposures))
        if low is not None:
            query = query.where(exposures.c.unit >= low)
        high = connection.scalar(query.order_by(exposures.c.unit).limit(1).offset(RANGE_UNITS))
        yield low, high
        if high is None:
            return
        low = high


def _drop(connection: Connection) -> None:
    # Without TEMPORARY, MySQL commits whatever transaction is open.
    name = (
        f"TABLE IF EXISTS temp.{NAME_OF_TABLE}"
        if is_sqlite(connection)
        else f"TEMPORARY TABLE IF EXISTS {NAME_OF_TABLE}"
    )
    connection.execute(text(f"DROP {name}"))


def _fill(
    connection: Connection,
    scope: Scope,
    days: Sequence[int],
    asked: Sequence[Asked],
    table: Table,
    bounds: tuple[str | None, str | None],
) -> None:
    rows = experiment_unit_days
    columns: dict[str, ColumnElement[float]] = {}
    for one in asked:
        columns |= _amounts_of(scope, one)
    # Days one by one, so that each is a range of the key inside the range of units.
    chosen = [scope.mine(rows), rows.c.day.in_(days), rows.c.action.in_([SERVED, *_codes(scope, asked)])]
    low, high = bounds
    if low is not None:
        chosen.append(rows.c.unit >= low)
    if high is not None:
        chosen.append(rows.c.unit < high)
    sums = [column.label(name) for name, column in columns.items()]
    unit = select(rows.c.unit, *sums).where(*chosen).group_by(rows.c.unit).subquery()
    met = and_(scope.mine(exposures), exposures.c.unit == unit.c.unit)
    head = (exposures.c.variant, exposures.c.segment, exposures.c.first_at_us)
    query = select(*head, *[unit.c[name] for name in columns]).select_from(unit.join(exposures, met))
    query = in_order(connection, query).where(exposures.c.first_at_us <= scope.until_us)
    connection.execute(filled(table, query))


def _amounts_of(scope: Scope, asked: Asked) -> dict[str, ColumnElement[float]]:
    rows, metric = experiment_unit_days, asked.metric
    since: list[ColumnElement[bool]] = [rows.c.day.between(0, asked.day)]
    before: list[ColumnElement[bool]] = [rows.c.day < 0]
    if metric.window_days is not None:
        since.append(rows.c.age < metric.window_days)
    columns = {}
    for letters, amount in (("xp", metric.numerator), ("yq", metric.denominator)):
        if amount is None:
            continue
        for name, when in ((f"{letters[0]}{asked.place}", since), (f"{letters[1]}{asked.past}", before)):
            total = _amount(scope, amount, when, asked.basis)
            columns[name] = case((total > 0, 1.0), else_=0.0) if metric.kind is Kind.PROPORTION else total
    return columns


def _letters(metric: Metric) -> str:
    return "xypq" if metric.kind is Kind.RATIO else "xp"


def _codes(scope: Scope, asked: Sequence[Asked]) -> tuple[int, ...]:
    return scope.codes_of(one for each in asked for one in (each.metric.numerator, each.metric.denominator) if one)


def _amount(scope: Scope, amount: Amount, when: list[ColumnElement[bool]], basis: str) -> ColumnElement[float]:
    rows = experiment_unit_days
    served = amount.of == "seen" and basis == "served"
    column = {"count": rows.c.events, "sum": rows.c.value, "seen": rows.c.seen}[amount.of]
    codes = (SERVED,) if served else scope.codes_of([amount])
    return func.sum(case((and_(rows.c.action.in_(codes), *when), column), else_=0.0))


def _seen_since(connection: Connection, scope: Scope) -> int | None:
    """The first day on which a unit reported an impression, 0 where no metric asks: the first row found ends the
    search, and served rows are only there on days without any."""
    rows = experiment_unit_days
    codes = scope.codes_of(one for one in scope.amounts() if one.of == "seen")
    if not codes:
        return 0
    seen = (scope.mine(rows), rows.c.day >= 0, rows.c.action.in_(codes), rows.c.seen > 0)
    query = select(rows.c.day).where(*seen).order_by(rows.c.day).limit(1)
    return connection.scalar(query)


def sums(connection: Connection, now: UnitNow) -> dict[tuple[int, str], dict[Cell, dict[str, Any]]]:
    """{(day, metric): {(variant, segment): {"x", "xx", "xp"…, "cap"}}}, without n."""
    caps = {one.place: _cap(connection, now, one) for one in now.asked if one.metric.winsorise}
    products = {one.place: _products(now, one, caps) for one in now.asked}
    columns: list[ColumnElement[Any]] = [now.table.c.variant, now.table.c.segment]
    for place, named in products.items():
        columns += [func.sum(one).label(f"{name}_{place}") for name, one in named.items()]
    rows = connection.execute(select(*columns).group_by(now.table.c.variant, now.table.c.segment)).mappings().all()
    found: dict[tuple[int, str], dict[Cell, dict[str, Any]]] = {}
    for one in now.asked:
        cells = found.setdefault((one.day, one.metric.key), {})
        for row in rows:
            cell = {name: float(row[f"{name}_{one.place}"] or 0) for name in products[one.place]}
            cells[row["variant"], row["segment"]] = cell | _facts(one, caps.get(one.place))
    return found


def _facts(asked: Asked, cap: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {} if cap is None else {"cap": cap}
    denominator = asked.metric.denominator
    return facts | ({"basis": asked.basis} if denominator and denominator.of == "seen" else {})


def _products(now: UnitNow, asked: Asked, caps: Mapping[int, float | None]) -> dict[str, ColumnElement[float]]:
    letters = now.letters(asked)
    if (cap := caps.get(asked.place)) is not None:
        letters = {name: case((one > cap, cap), else_=one) for name, one in letters.items()}
    pairs = combinations_with_replacement(letters, 2)
    return letters | {a + b: letters[a] * letters[b] for a, b in pairs}


def _cap(connection: Connection, now: UnitNow, asked: Asked) -> float | None:
    """As `outliers.cap_at` of the units above zero, of all variants."""
    x, percentile = now.table.c[f"x{asked.place}"], asked.metric.winsorise
    count = connection.scalar(select(func.count()).where(or_(x > 0, x < 0))) or 0
    if count == 0 or percentile is None:
        return None
    position = percentile * (count - 1)
    low = math.floor(position)
    ordered = select(x).where(or_(x > 0, x < 0)).order_by(x).limit(2).offset(low)
    ends = [float(one) for one in connection.scalars(ordered)]
    return ends[0] + (ends[-1] - ends[0]) * (position - low)
