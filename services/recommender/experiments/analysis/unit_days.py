"""What each unit did on one day, from its first exposure on. A day is deleted and filled again, so it never doubles.

Rows of `day` >= 0 are the day's own; those of `day` = -D are what the units first exposed on day D did in the two weeks
before (the covariate). Multi-variant units are found among the day's exposures and leave with all that they did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, delete, exists, func, literal, select

from services.recommender.experiments.analysis.scope import (
    DAY_US,
    SERVED,
    Scope,
    added_up,
    by_index,
    in_order,
    is_sqlite,
    list_length,
    whole_days,
)
from shared.storage.statements import insert_new
from shared.storage.tables import events, experiment_excluded_units, experiment_slates, experiment_unit_days, exposures

_CHUNK = 500
_SUMS = ("events", "value", "seen")


def fill(connection: Connection, scope: Scope, day: int) -> None:
    """Inside one transaction with everything else of the day, whose row in `experiment_progress` it has locked: what
    two wrote at once would add up. Days may be filled side by side."""
    table = experiment_unit_days
    for one in (day, -day):  # an IN of two made MariaDB walk the whole experiment
        connection.execute(delete(table).where(scope.mine(table), table.c.day == one))
    connection.execute(added_up(connection, table, _acted(connection, scope, day), _SUMS))
    if scope.pre_days:
        connection.execute(added_up(connection, table, _acted_before(connection, scope, day), _SUMS))
    if not _any_seen(connection, scope, day):
        connection.execute(added_up(connection, table, _served(connection, scope, day), _SUMS))


def exposed_on(scope: Scope, day: int) -> ColumnElement[bool]:
    """Of `exposures`, by its index on the day whichever zone `first_day` was counted in."""
    start, end = scope.range_us(day)
    return and_(
        scope.mine(exposures),
        exposures.c.first_day.between(start // DAY_US - 1, end // DAY_US + 1),
        exposures.c.first_at_us >= start,
        exposures.c.first_at_us < end,
    )


def exclude(connection: Connection, scope: Scope, days: Sequence[int], filled: Iterable[int]) -> None:
    """Multi-variant units first exposed on `days` leave the days that are `filled`. Before any of `days` is filled:
    two days that found the same unit side by side would wait for each other."""
    units: set[str] = set()
    for day in days:
        units.update(_newly_multiple(connection, scope, day))
    table, ordered = experiment_unit_days, sorted(units)
    for start in range(0, len(ordered), _CHUNK):
        chunk = ordered[start : start + _CHUNK]
        for day in (sign * one for one in filled for sign in (1, -1)):
            gone = (scope.mine(table), table.c.day == day, table.c.unit.in_(chunk))
            connection.execute(delete(table).where(*gone))
        rows = [{"experiment": scope.experiment, "phase": scope.phase, "unit": unit} for unit in chunk]
        insert_new(connection, experiment_excluded_units, rows)


def _newly_multiple(connection: Connection, scope: Scope, day: int) -> list[str]:
    other = exposures.alias()
    same = and_(
        other.c.experiment == exposures.c.experiment,
        other.c.phase == exposures.c.phase,
        other.c.unit == exposures.c.unit,
        other.c.variant != exposures.c.variant,
    )
    query = select(exposures.c.unit).where(exposed_on(scope, day), exists().where(same), counted(scope))
    return list(connection.scalars(query.distinct()))


def counted(scope: Scope) -> ColumnElement[bool]:
    """Exposures of units that met one variant only."""
    out = experiment_excluded_units
    return ~exists().where(scope.mine(out), out.c.unit == exposures.c.unit)


def _acted(connection: Connection, scope: Scope, day: int) -> Select[Any]:
    start, end = scope.range_us(day)
    joined = events.join(exposures, and_(scope.mine(exposures), exposures.c.unit == events.c.user_key))
    age = whole_days(connection, events.c.occurred_at_us - exposures.c.first_at_us)
    query = _each(connection, scope, day, age).select_from(joined)
    return in_order(connection, query).where(
        events.c.occurred_day.between(start // DAY_US, (end - 1) // DAY_US),
        events.c.occurred_at_us >= start,
        events.c.occurred_at_us < end,
        events.c.occurred_at_us >= exposures.c.first_at_us,
        counted(scope),
    )


def _acted_before(connection: Connection, scope: Scope, day: int) -> Select[Any]:
    before = and_(
        events.c.user_key == exposures.c.unit,
        events.c.occurred_at_us < exposures.c.first_at_us,
        events.c.occurred_at_us >= exposures.c.first_at_us - scope.pre_days * DAY_US,
    )
    query = _each(connection, scope, -day, literal(0)).select_from(exposures.join(events, before))
    query = by_index(connection, query, exposures, "ix_exposures_experiment_phase_first_day")
    return in_order(connection, query).where(exposed_on(scope, day), counted(scope))


def _each(connection: Connection, scope: Scope, day: int, age: ColumnElement[int]) -> Select[Any]:
    """A row an event."""
    one = case((events.c.item_index.is_not(None), 1), else_=0)
    length = list_length(connection, events.c.impression)
    seen = case((events.c.impression.is_(None), one), else_=func.coalesce(length, one))
    if is_sqlite(connection):  # a JSON null is text there
        seen = case((func.json_type(events.c.impression) == "array", length), else_=one)
    return select(
        *_key(scope, day),
        events.c.action,
        age.label("age"),
        literal(1).label("events"),
        func.coalesce(events.c.event_value, 0.0).label("value"),
        case((events.c.action.in_(_seen_codes(scope)), seen), else_=0).label("seen"),
    ).where(events.c.action.in_(scope.codes_of(scope.amounts())))


def _key(scope: Scope, day: int) -> list[ColumnElement[Any]]:
    return [
        literal(scope.experiment).label("experiment"),
        literal(scope.phase).label("phase"),
        literal(day).label("day"),
        exposures.c.unit,
    ]


def _seen_codes(scope: Scope) -> tuple[int, ...]:
    return scope.codes_of(one for one in scope.amounts() if one.of == "seen")


def _any_seen(connection: Connection, scope: Scope, day: int) -> bool:
    """Also true where no metric asks for what was seen."""
    table, codes = experiment_unit_days, _seen_codes(scope)
    if not codes:
        return True
    query = select(table.c.unit).where(
        scope.mine(table), table.c.day == day, table.c.action.in_(codes), table.c.seen > 0
    )
    return connection.execute(query.limit(1)).first() is not None


def _served(connection: Connection, scope: Scope, day: int) -> Select[Any]:
    start, end = scope.range_us(day)
    slates = experiment_slates
    joined = slates.join(exposures, and_(scope.mine(exposures), exposures.c.unit == slates.c.unit))
    age = whole_days(connection, slates.c.served_at_us - exposures.c.first_at_us)
    query = select(
        *_key(scope, day),
        literal(SERVED).label("action"),
        age.label("age"),
        literal(1).label("events"),
        literal(0.0).label("value"),
        slates.c["items"].label("seen"),
    ).select_from(joined)
    return in_order(connection, query).where(
        scope.mine(slates),
        slates.c.served_day.between(start // DAY_US, (end - 1) // DAY_US),
        slates.c.served_at_us >= start,
        slates.c.served_at_us < end,
        slates.c.served_at_us >= exposures.c.first_at_us,
        counted(scope),
    )
