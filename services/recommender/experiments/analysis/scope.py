"""What one run of the analysis is about, and the few words that the two databases spell differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Connection, Insert, Select, Table, and_, func, insert
from sqlalchemy.dialects import mysql, sqlite

from services.recommender.experiments.local_days import start_us, zone_of
from services.recommender.experiments.metrics import Amount, Metric, of_plan
from services.recommender.experiments.registered import RegisteredExperiment
from shared.actions import ActionTable

DAY_US = 86_400_000_000
PRE_DAYS = 14
"""What a unit did so long before its first exposure is its covariate (CUPED); GrowthBook's default."""
SERVED = -1
"""Stands for an action in `experiment_unit_days`: slates served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """`metrics`: the primary first. `codes` {event type: action codes}. `until_us`: nothing later counts."""

    experiment: str
    phase: int
    zone: ZoneInfo
    metrics: tuple[Metric, ...]
    codes: Mapping[str, tuple[int, ...]]
    until_us: int
    pre_days: int = PRE_DAYS

    @classmethod
    def of(
        cls, registered: RegisteredExperiment, known: Mapping[str, Metric], actions: ActionTable, now_us: int
    ) -> Scope:
        """Raises ValidationFailed for a plan with unknown metrics or an unknown time zone."""
        codes: dict[str, tuple[int, ...]] = {}
        for action in actions:
            codes[action.event_type] = (*codes.get(action.event_type, ()), action.code)
        stopped = registered.until_us
        return cls(
            experiment=registered.definition.key,
            phase=registered.definition.phase,
            zone=zone_of(registered.time_zone),
            metrics=of_plan(registered.plan, known, actions.event_types),
            codes=codes,
            until_us=now_us if stopped is None else min(now_us, stopped),
        )

    def codes_of(self, amounts: Iterable[Amount]) -> tuple[int, ...]:
        return tuple(sorted({code for one in amounts for kind in one.event_types for code in self.codes[kind]}))

    def amounts(self) -> tuple[Amount, ...]:
        return tuple(one for metric in self.metrics for one in (metric.numerator, metric.denominator) if one)

    def range_us(self, day: int) -> tuple[int, int]:
        """[start, end) of the day there, cut where the experiment ends."""
        return start_us(day, self.zone), min(start_us(day + 1, self.zone), self.until_us + 1)

    def mine(self, table: Table) -> ColumnElement[bool]:
        return and_(table.c.experiment == self.experiment, table.c.phase == self.phase)


def is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def in_order(connection: Connection, query: Select[Any]) -> Select[Any]:
    """Joins in the order written: MariaDB, misled by the many users of a day, would walk every exposure instead."""
    return query if is_sqlite(connection) else query.prefix_with("STRAIGHT_JOIN")


def by_index(connection: Connection, query: Select[Any], table: Table, index: str) -> Select[Any]:
    """MariaDB prefers the key's first columns, and so all exposures of an experiment, for those of one day."""
    if is_sqlite(connection):
        return query
    return query.with_hint(table, f"FORCE INDEX ({index})", connection.dialect.name)


def whole_days(connection: Connection, span_us: ColumnElement[int]) -> ColumnElement[int]:
    """`FLOOR(a / b)` of MySQL rounds the quotient to four places first: four seconds before midnight are a day."""
    return span_us.op("/" if is_sqlite(connection) else "DIV", precedence=9)(DAY_US)


def list_length(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[int]:
    return func.json_array_length(column) if is_sqlite(connection) else func.json_length(column)


def filled(table: Table, query: Select[Any]) -> Insert:
    """INSERT … SELECT with the columns by the query's names."""
    return insert(table).from_select([str(column.key) for column in query.selected_columns], query)


def added_up(connection: Connection, table: Table, query: Select[Any], sums: Sequence[str]) -> Insert:
    """INSERT … SELECT that adds the columns `sums` to a row whose key is there. A GROUP BY instead needs a temporary
    table, which MariaDB moves to disk beyond 16 MB: 20 µs a row of a day of 195,000 events, this way 10."""
    names = [str(column.key) for column in query.selected_columns]
    if is_sqlite(connection):
        lite = sqlite.insert(table)
        added = {name: table.c[name] + lite.excluded[name] for name in sums}
        return lite.from_select(names, query).on_conflict_do_update(index_elements=list(table.primary_key), set_=added)
    own = mysql.insert(table)
    added = {name: table.c[name] + own.inserted[name] for name in sums}
    return own.from_select(names, query).on_duplicate_key_update(added)
