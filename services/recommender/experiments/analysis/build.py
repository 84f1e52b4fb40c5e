"""Brings the aggregates up to date: first what units did on each due day, two days side by side, each in one
transaction with its progress row; then the sufficient statistics of those days, `DAYS_AT_ONCE` in one pass.

Due are days never built, the last one built, which was not over yet, the two days before it (exposures may come late
from a journal), and every day that new events fell on, however old: event numbers only grow, so those after the last
build's newest are all there is to look at. A killed build's days without statistics come again, and until its newest
day is done the next one looks for events from where it did; a day built twice is the same. Days that only lie after a
late event keep their cumulative rows as they were known then; the newest day's are complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, and_, func, or_, select, update

from services.recommender.experiments.analysis import daily, latencies, quality, unit_days
from services.recommender.experiments.analysis.scope import DAY_US, Scope
from services.recommender.experiments.local_days import day_of
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registered import RegisteredExperiment
from shared.actions import ActionTable
from shared.storage.database import Database
from shared.storage.statements import upsert
from shared.storage.tables import events, experiment_progress, experiment_unit_days, exposures

WORKERS = 2
"""Connections that fill days of MySQL side by side; SQLite has one writer."""
DAYS_AT_ONCE = 14
TRAILING_DAYS = 2
IN_FLIGHT = 20_000
IN_FLIGHT_US = 600_000_000
FINAL_AFTER_US = 2 * DAY_US
"""Events that may have been numbered but not yet committed when a build looked: so many numbers, so long before it."""


@dataclass(frozen=True, slots=True)
class Built:
    """`days` that were filled; `seconds` all told."""

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
    """Of the present phase. Give a database whose `statement_timeout_s` fits a day's events; with one connection days
    are filled one by one. Raises DatabaseUnavailable with the days before it kept."""
    began, started_us = time.perf_counter(), time.time_ns() // 1000
    scope = Scope.of(registered, known, actions, now_us)
    with database.read() as connection:
        here = Look(int(connection.scalar(select(func.max(events.c.event_seq))) or 0), started_us)
        found = None if _is_final(connection, scope, registered, now_us) else due(connection, scope, here)
    if found is None:
        return Built((), time.perf_counter() - began)
    database.transact(lambda connection: unit_days.exclude(connection, scope, found.days, found.filled))
    _side_by_side(database, [partial(_fill, scope, day, found.since) for day in found.days])
    for start in range(0, len(found.unsummed), DAYS_AT_ONCE):
        chunk = found.unsummed[start : start + DAYS_AT_ONCE]
        database.transact(partial(_sum, registered, scope, found, chunk, here))
    return Built(tuple(found.days), time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Look:
    """The newest event there was when a build began, and when that was: the next build looks from there."""

    event_seq: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Due:
    """All ascending; the last of `days` and `unsummed` is the newest day. `first` day of the experiment; `filled`: days
    that units have rows of; `days` to fill; `unsummed`: those, and days that a killed build filled and no more;
    `since`: where the build that finished last looked."""

    first: int
    filled: Sequence[int]
    days: Sequence[int]
    unsummed: Sequence[int]
    since: Look


def _side_by_side(database: Database, works: Sequence[Callable[[Connection], None]]) -> None:
    """One transaction each. The first failure is raised once what runs has ended; what waits is not begun."""
    workers = 1 if database.is_sqlite else min(WORKERS, database.connections)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="analysis")
    try:
        for _ in pool.map(database.transact, works):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(scope: Scope, day: int, since: Look, connection: Connection) -> None:
    began = time.perf_counter()
    row = {
        "experiment": scope.experiment,
        "phase": scope.phase,
        "day": day,
        "as_of_us": scope.range_us(day)[1] - 1,
        "event_seq": since.event_seq,
        "built_at_us": since.at_us,
        "seconds": 0.0,
        "has_sums": False,
    }
    # First of all: the row's lock keeps another build out of the day until the commit.
    upsert(connection, experiment_progress, [row], ["seconds"])
    unit_days.fill(connection, scope, day)
    quality.write(connection, scope, day)
    latencies.write(connection, scope, day)
    table = experiment_progress
    took = {"seconds": time.perf_counter() - began}
    connection.execute(update(table).where(scope.mine(table), table.c.day == day).values(took))


def _sum(
    registered: RegisteredExperiment, scope: Scope, found: Due, days: Sequence[int], here: Look, connection: Connection
) -> None:
    """Only the newest day says that the build is through."""
    table, newest = experiment_progress, found.days[-1]
    for day in days:
        done = {"has_sums": True, "as_of_us": scope.range_us(day)[1] - 1}
        if day == newest:
            done |= {"event_seq": here.event_seq, "built_at_us": here.at_us}
        connection.execute(update(table).where(scope.mine(table), table.c.day == day).values(done))
    daily.write(connection, scope, found.first, days, newest, scope.metrics)
    if newest in days:
        latencies.compare(connection, scope, newest, registered)


def _is_final(connection: Connection, scope: Scope, registered: RegisteredExperiment, now_us: int) -> bool:
    """Long stopped, and the purge took what its units did: statistics made once more would lack it."""
    if registered.stopped_at_us is None or now_us - registered.stopped_at_us < FINAL_AFTER_US:
        return False
    progress, rows = experiment_progress, experiment_unit_days
    built = connection.execute(select(progress.c.day).where(scope.mine(progress)).limit(1)).first()
    kept = connection.execute(select(rows.c.day).where(scope.mine(rows)).limit(1)).first()
    return built is not None and kept is None


def due(connection: Connection, scope: Scope, here: Look) -> Due | None:
    """None before the first exposure."""
    first = _first_day(connection, scope)
    if first is None:
        return None
    everything = range(first, day_of(scope.until_us, scope.zone) + 1)
    table = experiment_progress
    built = {row.day: row for row in connection.execute(select(table).where(scope.mine(table)))}
    wanted, since = set(everything), here
    if built:
        newest = built[max(built)]
        since = Look(newest.event_seq, newest.built_at_us)
        wanted = {day for day in everything if day not in built or day >= newest.day - TRAILING_DAYS}
        wanted.update(_late(connection, scope, since) & set(everything))
    days = sorted(wanted)
    unsummed = {day for day in built if not built[day].has_sums} & set(everything)
    return Due(first, sorted(built), days, sorted(unsummed | wanted), since) if days else None


def _late(connection: Connection, scope: Scope, since: Look) -> set[int]:
    """Days of events that came after `since`."""
    in_flight = and_(
        events.c.event_seq > since.event_seq - IN_FLIGHT,
        events.c.received_at_us > since.at_us - IN_FLIGHT_US,
    )
    late = select(events.c.occurred_day).where(
        events.c.event_seq > since.event_seq - IN_FLIGHT,  # the primary key's range
        or_(events.c.event_seq > since.event_seq, in_flight),
    )
    found: set[int] = set()
    for utc_day in connection.scalars(late.distinct()):
        here = day_of(utc_day * DAY_US, scope.zone), day_of((utc_day + 1) * DAY_US - 1, scope.zone)
        found.update(range(here[0], here[1] + 1))
    return found


def _first_day(connection: Connection, scope: Scope) -> int | None:
    earliest = connection.scalar(select(func.min(exposures.c.first_day)).where(scope.mine(exposures)))
    if earliest is None:
        return None
    near = (scope.mine(exposures), exposures.c.first_day <= earliest + 1)
    first_us = connection.scalar(select(func.min(exposures.c.first_at_us)).where(*near))
    return None if first_us is None or first_us > scope.until_us else day_of(first_us, scope.zone)
