"""Brings the aggregates up to date: which days are due, and each of them in one transaction with its progress row.

Due are days never built, the last one built, which was not over yet, the two days before it (exposures may come late
from a journal), and every day that new events fell on, however old: event numbers only grow, so those after the last
build's newest are all there is to look at. Killed between days, the next run goes on; a day built twice is the same.
Days that only lie after a late event keep their cumulative rows as they were known then; the newest day's are complete.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, and_, delete, func, insert, or_, select

from services.recommender.experiments.analysis import daily, latencies, quality, unit_days
from services.recommender.experiments.analysis.scope import DAY_US, Scope
from services.recommender.experiments.local_days import day_of
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registered import RegisteredExperiment
from shared.actions import ActionTable
from shared.storage.database import Database
from shared.storage.tables import events, experiment_progress, exposures

TRAILING_DAYS = 2
IN_FLIGHT = 20_000
IN_FLIGHT_US = 600_000_000
"""Events that may have been numbered but not yet committed when a build looked: so many numbers, so long before it."""


@dataclass(frozen=True, slots=True)
class Built:
    """`days` as they were built; `seconds` all told."""

    days: tuple[int, ...]
    seconds: float


def build(
    database: Database,
    registered: RegisteredExperiment,
    now_us: int,
    *,
    known: Mapping[str, Metric],
    actions: ActionTable,
) -> Built:
    """Of the present phase. Give a database whose `statement_timeout_s` fits a day's events. Raises DatabaseUnavailable
    with the days before it kept."""
    began, started_us = time.perf_counter(), time.time_ns() // 1000
    scope = Scope.of(registered, known, actions, now_us)
    with database.read() as connection:
        newest = int(connection.scalar(select(func.max(events.c.event_seq))) or 0)
        days = due(connection, scope)
    for day in days:
        state = _State(registered, scope, newest, started_us)
        database.transact(partial(_one, state, day, day == days[-1]))
    return Built(tuple(days), time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class _State:
    """`newest` event and time when the build began: the next build looks from there."""

    registered: RegisteredExperiment
    scope: Scope
    newest: int
    started_us: int


def _one(state: _State, day: int, whole: bool, connection: Connection) -> None:
    """`whole`: all metrics; else the primary one, which is all that the chart by day needs."""
    scope = state.scope
    began = time.perf_counter()
    unit_days.fill(connection, scope, day)
    quality.write(connection, scope, day)
    latencies.write(connection, scope, day, state.registered, newest=whole)
    daily.write(connection, scope, day, scope.metrics if whole else scope.metrics[:1])
    table = experiment_progress
    connection.execute(delete(table).where(scope.mine(table), table.c.day == day))
    row = {
        "experiment": scope.experiment,
        "phase": scope.phase,
        "day": day,
        "as_of_us": scope.range_us(day)[1] - 1,
        "event_seq": state.newest,
        "built_at_us": state.started_us,
        "seconds": time.perf_counter() - began,
    }
    connection.execute(insert(table), [row])


def due(connection: Connection, scope: Scope) -> list[int]:
    """Oldest first: a late day is built before the newest, whose row says from which event on to look."""
    first = _first_day(connection, scope)
    if first is None:
        return []
    last = day_of(scope.until_us, scope.zone)
    table = experiment_progress
    built = {row.day: row for row in connection.execute(select(table).where(scope.mine(table)))}
    everything = range(first, last + 1)
    if not built:
        return list(everything)
    wanted = {day for day in everything if day not in built or day >= max(built) - TRAILING_DAYS}
    newest = built[max(built)]
    in_flight = and_(
        events.c.event_seq > newest.event_seq - IN_FLIGHT,
        events.c.received_at_us > newest.built_at_us - IN_FLIGHT_US,
    )
    late = select(events.c.occurred_day).where(
        events.c.event_seq > newest.event_seq - IN_FLIGHT,  # the primary key's range
        or_(events.c.event_seq > newest.event_seq, in_flight),
    )
    for utc_day in connection.scalars(late.distinct()):
        here = day_of(utc_day * DAY_US, scope.zone), day_of((utc_day + 1) * DAY_US - 1, scope.zone)
        wanted.update(day for day in range(here[0], here[1] + 1) if day in everything)
    return sorted(wanted)


def _first_day(connection: Connection, scope: Scope) -> int | None:
    earliest = connection.scalar(select(func.min(exposures.c.first_day)).where(scope.mine(exposures)))
    if earliest is None:
        return None
    near = (scope.mine(exposures), exposures.c.first_day <= earliest + 1)
    first_us = connection.scalar(select(func.min(exposures.c.first_at_us)).where(*near))
    return None if first_us is None or first_us > scope.until_us else day_of(first_us, scope.zone)
