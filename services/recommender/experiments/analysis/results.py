"""The report of an experiment, from its aggregates alone: a few thousand rows, however many events there were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, and_, func, select

from services.recommender.experiments.alarms import Counts, alarms
from services.recommender.experiments.analysis.scope import DAY_US, Scope
from services.recommender.experiments.assembly import UNITS, Aggregates, assemble, shares
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import Alarm, Report
from shared.actions import ActionTable
from shared.storage.database import Database
from shared.storage.tables import (
    experiment_audit,
    experiment_daily,
    experiment_excluded_units,
    experiment_item_daily,
    experiment_progress,
    experiment_quality_daily,
    exposures,
)

KILL = "kill_variant"
HEARD_US = 10_000_000
"""Recommenders look for changes every second; a request and a slow database beside it."""


def report(
    database: Database,
    registered: RegisteredExperiment,
    now_us: int,
    *,
    known: Mapping[str, Metric],
    actions: ActionTable,
    lost_slates: int = 0,
) -> Report:
    """Raises DatabaseUnavailable, ValidationFailed."""
    scope = Scope.of(registered, known, actions, now_us)
    found, wrong = _looked_at(database, registered, scope, now_us, lost_slates)
    return assemble(registered, scope.metrics, found, wrong)


def faults(
    database: Database,
    registered: RegisteredExperiment,
    now_us: int,
    *,
    known: Mapping[str, Metric],
    actions: ActionTable,
) -> tuple[Alarm, ...]:
    """The report's alarms without its statistics. Raises as `report`."""
    return _looked_at(database, registered, Scope.of(registered, known, actions, now_us), now_us, 0)[1]


def _looked_at(
    database: Database, registered: RegisteredExperiment, scope: Scope, now_us: int, lost_slates: int
) -> tuple[Aggregates, tuple[Alarm, ...]]:
    with database.read() as connection:
        found = read(connection, scope)
        leaked = {name: _since(connection, scope, name, at) for name, at in _killed(connection, scope)}
    killed = {variant.key for variant in registered.definition.variants if variant.killed}
    running = registered.definition.status is Status.RUNNING
    counts = Counts(
        units=found.units(),
        may_have=shares(registered.definition),
        since_killed={name: leaked.get(name, 0) for name in killed},
        excluded=found.excluded,
        newest_us=found.newest_us,
        running_since_us=(registered.started_at_us or 0) if running else None,
        lost_slates=lost_slates,
    )
    return found, alarms(counts, now_us)


def read(connection: Connection, scope: Scope) -> Aggregates:
    progress = experiment_progress
    newest = connection.execute(
        select(progress).where(scope.mine(progress)).order_by(progress.c.day.desc()).limit(1)
    ).first()
    if newest is None:
        return Aggregates()
    quality = _quality(connection, scope)
    served = [day["newest_us"] for days in quality.values() for day in days if day.get("newest_us")]
    return Aggregates(
        as_of_us=newest.as_of_us,
        newest_us=min(newest.as_of_us, max(served)) if served else newest.as_of_us,
        last_day=newest.day,
        sums=_sums(connection, scope, newest.day),
        excluded=_count(connection, scope),
        quality=quality,
        items=_items(connection, scope),
    )


def _sums(connection: Connection, scope: Scope, last_day: int) -> list[Any]:
    """Everything of the last day, and of the days before the primary metric and the units."""
    table = experiment_daily
    chart = table.c.metric.in_([UNITS, scope.metrics[0].key])
    query = select(table.c.day, table.c.metric, table.c.variant, table.c.segment, table.c.sums)
    return list(connection.execute(query.where(scope.mine(table), chart | (table.c.day == last_day))))


def _quality(connection: Connection, scope: Scope) -> dict[str, list[Mapping[str, Any]]]:
    table = experiment_quality_daily
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in connection.execute(select(table.c.variant, table.c.sums).where(scope.mine(table))):
        found.setdefault(row.variant, []).append(row.sums)
    return found


def _items(connection: Connection, scope: Scope) -> dict[str, list[int]]:
    table = experiment_item_daily
    query = (
        select(table.c.variant, func.sum(table.c.slates).label("slates"))
        .where(scope.mine(table))
        .group_by(table.c.variant, table.c.item_index)
    )
    found: dict[str, list[int]] = {}
    for row in connection.execute(query):
        found.setdefault(row.variant, []).append(int(row.slates))
    return found


def _count(connection: Connection, scope: Scope) -> int:
    table = experiment_excluded_units
    return int(connection.scalar(select(func.count()).select_from(table).where(scope.mine(table))) or 0)


def _killed(connection: Connection, scope: Scope) -> list[tuple[str, int]]:
    """(variant, when) from the audit. Units exposed later are a leak, but for the seconds until everybody heard."""
    table = experiment_audit.c
    rows = connection.execute(
        select(table.at_us, table.detail).where(table.experiment == scope.experiment, table.action == KILL)
    )
    return [(str(row.detail["variant"]), row.at_us + HEARD_US) for row in rows if "variant" in row.detail]


def _since(connection: Connection, scope: Scope, variant: str, at_us: int) -> int:
    near = exposures.c.first_day >= at_us // DAY_US - 1
    mine = and_(scope.mine(exposures), exposures.c.variant == variant, near, exposures.c.first_at_us > at_us)
    return int(connection.scalar(select(func.count()).select_from(exposures).where(mine)) or 0)
