from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select

from services.recommender.experiments.analysis import unit_now
from services.recommender.experiments.analysis.build import build
from services.recommender.experiments.analysis.results import read, report
from services.recommender.experiments.analysis.scope import Scope
from services.recommender.experiments.assembly import Aggregates
from services.recommender.experiments.local_days import start_us, zone_of
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registry.sql import write_audit
from services.recommender.experiments.report import AlarmCode, Decision
from services.recommender.experiments.statistics.outliers import cap_at
from shared.errors import DatabaseUnavailable
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import (
    events,
    experiment_daily,
    experiment_excluded_units,
    experiment_progress,
    experiment_quality_daily,
    experiment_slates,
    experiment_unit_days,
    exposures,
)
from tests.integration.experiments.analysis_world import (
    ACTIONS,
    CONTROL,
    DAYS,
    FIRST_DAY,
    HOUR_US,
    KNOWN,
    TREATMENT,
    ZONE,
    canonical,
    event,
    expected,
    exposure,
    now_us,
    registered,
    slates,
    world,
)

pytestmark = pytest.mark.integration
UNCAPPED = {key: metric.model_copy(update={"winsorise": None}) for key, metric in KNOWN.items()}


def built(database: Database, known: Any = UNCAPPED, at_us: int | None = None) -> Aggregates:
    at = now_us() if at_us is None else at_us
    build(database, registered(), at, known=known, actions=ACTIONS)
    return aggregates(database, known, at)


def aggregates(database: Database, known: Any = UNCAPPED, at_us: int | None = None) -> Aggregates:
    scope = Scope.of(registered(), known, ACTIONS, now_us() if at_us is None else at_us)
    with database.read() as connection:
        return read(connection, scope)


def assert_equal_sums(found: dict[str, dict[str, Any]], wanted: dict[str, dict[str, float]]) -> None:
    assert set(found) == set(wanted)
    for variant, sums in wanted.items():
        got = {name: found[variant].get(name, 0) for name in sums}
        assert got == pytest.approx(sums, rel=1e-9, abs=1e-6), variant


def everything(database: Database) -> str:
    with database.read() as connection:
        tables = (experiment_unit_days, experiment_daily, experiment_quality_daily, experiment_excluded_units)
        return canonical([sorted(canonical(list(row)) for row in connection.execute(select(one))) for one in tables])


@pytest.mark.parametrize("key", ["ctr", "conversion", "revenue_per_unit", "watch_time_per_unit"])
def test_the_aggregates_are_the_sums_of_the_units_event_by_event(database: Database, key: str) -> None:
    made = world()
    made.write(database)
    found = built(database)
    assert_equal_sums(found.of(key), expected(made, UNCAPPED[key], now_us() + 1))
    for segment in ("de", "fr", ""):
        assert_equal_sums(found.of(key, segment=segment), expected(made, UNCAPPED[key], now_us() + 1, segment=segment))


def test_every_day_of_the_chart_is_cumulative_and_ends_at_local_midnight(database: Database) -> None:
    made = world()
    made.write(database)
    found = built(database)
    assert found.days() == list(range(FIRST_DAY, FIRST_DAY + DAYS))
    for day in found.days()[:-1]:
        sums, wanted = found.of("ctr", day), expected(made, UNCAPPED["ctr"], start_us(day + 1, zone_of(ZONE)))
        for variant, cells in wanted.items():
            assert sums[variant]["x"] == pytest.approx(cells["x"])
            assert sums[variant]["xy"] == pytest.approx(cells["xy"])
            assert sums[variant]["n"] >= cells["n"]  # later days excluded some of its units


def test_day_by_day_gives_what_one_build_at_the_end_gives(database: Database) -> None:
    made = world()
    made.write(database)
    for day in range(FIRST_DAY + 1, FIRST_DAY + DAYS):
        built(database, at_us=start_us(day, zone_of(ZONE)) + 7 * HOUR_US)
    found = built(database)
    for key, metric in UNCAPPED.items():
        assert_equal_sums(found.of(key), expected(made, metric, now_us() + 1))


def test_building_again_changes_nothing(database: Database) -> None:
    made = world()
    made.write(database)
    slates(database, made)
    built(database)
    before = everything(database)
    with database.write() as connection:
        connection.execute(experiment_progress.delete())  # every day once more
    built(database)
    assert everything(database) == before


@pytest.mark.parametrize(("whole_ones", "filled"), [(4, 3), (7, 6)], ids=["filling", "summing"])
def test_a_build_that_dies_goes_on_where_it_was(database: Database, whole_ones: int, filled: int) -> None:
    made = world(units=60)
    made.write(database)
    slates(database, made)
    built(database)
    whole = everything(database)
    with database.write() as connection:
        for table in (experiment_progress, experiment_unit_days, experiment_daily, experiment_quality_daily):
            connection.execute(table.delete())
        connection.execute(experiment_excluded_units.delete())
    dying = _Dying(database, after=whole_ones)
    with pytest.raises(DatabaseUnavailable):
        build(dying, registered(), now_us(), known=UNCAPPED, actions=ACTIONS)  # type: ignore[arg-type]
    with database.read() as connection:
        assert list(connection.scalars(select(experiment_progress.c.has_sums))) == [False] * filled
    assert aggregates(database).as_of_us is None, "days without statistics are not shown"
    again = build(database, registered(), now_us(), known=UNCAPPED, actions=ACTIONS)
    # The newest of what was filled and the two days before it are looked at again, the others are only summed.
    assert again.days == tuple(range(FIRST_DAY + max(filled - 3, 0), FIRST_DAY + DAYS))
    assert everything(database) == whole


def test_a_late_event_outlives_the_builds_that_die_before_they_are_through(database: Database) -> None:
    made = world(units=60)
    made.write(database)
    built(database, at_us=start_us(FIRST_DAY + 4, zone_of(ZONE)))
    unit = next(row for row in made.exposed if row["first_at_us"] < start_us(FIRST_DAY + 1, zone_of(ZONE)))
    late = event(90_000, unit["unit"], "click", unit["first_at_us"] + 5)
    with database.write() as connection:
        connection.execute(insert(events), [late])
    made.events.append(late)
    for after in (2, 6):
        with pytest.raises(DatabaseUnavailable):
            build(_Dying(database, after), registered(), now_us(), known=UNCAPPED, actions=ACTIONS)  # type: ignore[arg-type]
    assert_equal_sums(built(database).of("ctr"), expected(made, UNCAPPED["ctr"], now_us() + 1))


def test_two_builds_at_once_count_no_event_twice(database: Database) -> None:
    made = world(units=60)
    made.write(database)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(build, database, registered(), now_us(), known=UNCAPPED, actions=ACTIONS) for _ in range(2)]
        assert [len(one.result().days) for one in both] == [DAYS, DAYS]
    assert_equal_sums(aggregates(database).of("ctr"), expected(made, UNCAPPED["ctr"], now_us() + 1))


def test_one_connection_is_enough(database: Database) -> None:
    world(units=60).write(database)
    narrow = Database(
        database.url.render_as_string(hide_password=False), DatabaseSettings(pool_size=1, connect_timeout_s=1)
    )
    try:
        assert len(build(narrow, registered(), now_us(), known=UNCAPPED, actions=ACTIONS).days) == DAYS
    finally:
        narrow.close()


def test_units_are_summed_range_by_range(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_now, "RANGE_UNITS", 7)
    made = world(units=60)
    made.write(database)
    found = built(database)
    for key in ("ctr", "revenue_per_unit"):
        assert_equal_sums(found.of(key), expected(made, UNCAPPED[key], now_us() + 1))


def test_slates_without_a_latency_have_no_latency_rather_than_none_at_all(database: Database) -> None:
    made = world(units=20)
    made.write(database)
    slates(database, made)
    with database.write() as connection:
        connection.execute(experiment_slates.update().values(took_us=None))
    built(database, KNOWN)
    found = report(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    assert {(one.p50_ms, one.p95_ms, one.p99_ms) for one in found.quality} == {(None, None, None)}
    assert all(one.requests > 0 for one in found.quality)


class _Dying:
    """A database that dies in the middle of a day's transaction, after `after` whole ones."""

    def __init__(self, database: Database, after: int) -> None:
        self._database, self._left, self.is_sqlite = database, after, True

    def read(self) -> Any:
        return self._database.read()

    def transact(self, work: Any) -> Any:
        def dying(connection: Any) -> None:
            work(connection)
            if self._left == 0:
                raise DatabaseUnavailable("killed")
            self._left -= 1

        return self._database.transact(dying)


def test_units_that_met_two_variants_are_counted_and_left_out_even_when_it_shows_days_later(database: Database) -> None:
    first = start_us(FIRST_DAY, zone_of(ZONE)) + HOUR_US
    made = world(units=40, seed=9)
    made.exposed = [exposure(f"u:{n}", (CONTROL, TREATMENT)[n % 2], first + n) for n in range(40)]
    made.write(database)
    early = built(database, at_us=start_us(FIRST_DAY + 2, zone_of(ZONE)))
    assert early.excluded == 0
    assert early.units() == {CONTROL: 20, TREATMENT: 20}
    late = exposure("u:0", TREATMENT, start_us(FIRST_DAY + 4, zone_of(ZONE)))
    with database.write() as connection:
        connection.execute(insert(exposures), [late])
    made.exposed.append(late)
    found = built(database)
    assert found.excluded == 1
    assert found.units() == {CONTROL: 19, TREATMENT: 20}
    assert_equal_sums(found.of("ctr"), expected(made, UNCAPPED["ctr"], now_us() + 1))


def test_what_a_unit_did_before_its_first_exposure_is_its_past_and_no_outcome(database: Database) -> None:
    first = start_us(FIRST_DAY + 1, zone_of(ZONE)) + 5 * HOUR_US
    made = world(units=0)
    made.exposed = [exposure("u:1", CONTROL, first)]
    made.events = [
        event(1, "u:1", "purchase", first - 1, 10.0),
        event(2, "u:1", "purchase", first, 7.0),
        event(3, "u:1", "purchase", first - 15 * 24 * HOUR_US, 99.0),
    ]
    made.write(database)
    sums = built(database).of("revenue_per_unit")[CONTROL]
    assert (sums["x"], sums["p"], sums["xp"]) == (7.0, 10.0, 70.0)


def test_an_event_that_comes_late_is_counted_by_the_next_build_however_old_its_day(database: Database) -> None:
    made = world()
    made.write(database)
    built(database)
    unit = next(row for row in made.exposed if row["first_at_us"] < start_us(FIRST_DAY + 1, zone_of(ZONE)))
    late = event(90_000, unit["unit"], "click", unit["first_at_us"] + 5)
    with database.write() as connection:
        connection.execute(insert(events), [late])
    made.events.append(late)
    assert_equal_sums(built(database).of("ctr"), expected(made, UNCAPPED["ctr"], now_us() + 1))


def test_without_any_impression_the_served_items_are_the_denominator_and_the_sums_say_so(database: Database) -> None:
    made = world(impressions=False)
    made.exposed = [row for place, row in enumerate(made.exposed) if row["unit"] not in _units(made.exposed[:place])]
    made.write(database)
    slates(database, made, a_unit=2)
    sums = built(database).of("ctr")
    for variant in (CONTROL, TREATMENT):
        served = [number for number, row in enumerate(made.exposed * 2) if row["variant"] == variant and number % 10]
        assert sums[variant]["y"] == 4 * len(served)
        assert sums[variant]["basis"] == "served"


def test_the_cap_is_the_percentile_of_units_above_zero_and_caps_every_sum(database: Database) -> None:
    known = {**UNCAPPED, "revenue_per_unit": KNOWN["revenue_per_unit"].model_copy(update={"winsorise": 0.8})}
    made = world()
    made.write(database)
    sums = built(database, known).of("revenue_per_unit")
    totals = _totals(made, UNCAPPED["revenue_per_unit"])
    cap = cap_at(totals, 0.8, ignore_zeros=True)
    assert sums[CONTROL]["cap"] == pytest.approx(cap)
    total = sum(one["x"] for one in sums.values())
    assert total == pytest.approx(np.minimum(totals, cap).sum())


def test_the_report_of_a_small_world_hides_its_verdict_for_its_multi_variant_units(database: Database) -> None:
    made = world()
    made.write(database)
    slates(database, made)
    built(database, KNOWN)
    found = report(database, registered(), now_us(), known=KNOWN, actions=ACTIONS)
    assert found.conclusion.decision is Decision.BLOCKED
    assert [alarm.code for alarm in found.alarms] == [AlarmCode.MULTI_VARIANT_UNITS]
    assert [one.metric for one in found.metrics] == ["ctr", "conversion", "revenue_per_unit", "watch_time_per_unit"]
    assert found.metrics[0].cuped
    assert sum(day.units for day in found.exposures_by_day) == sum(one.units for one in found.variants)
    assert {one.variant: one.coverage_requests for one in found.quality}[CONTROL] > 0
    assert all(one.p50_ms is not None and 3 < one.p50_ms < 60 for one in found.quality)
    assert {segment.name for segment in found.segments} == {"de", "fr", ""}


def test_sums_of_an_experiment_whose_units_were_purged_stay_as_they_were(database: Database) -> None:
    made = world(units=30)
    made.write(database)
    built(database)
    before = aggregates(database).of("ctr")
    with database.write() as connection:
        connection.execute(experiment_unit_days.delete())
    stopped = registered(stopped_at_us=now_us())
    done = build(database, stopped, now_us() + 90 * 24 * HOUR_US, known=UNCAPPED, actions=ACTIONS)
    assert done.days == ()
    assert aggregates(database).of("ctr") == before


def test_units_exposed_after_their_variant_was_killed_are_a_leak(database: Database) -> None:
    world().write(database)
    built(database)
    one = registered()
    killed = replace(
        one.definition, variants=(*one.definition.variants[:1], replace(one.definition.variants[1], killed=True))
    )
    when = start_us(FIRST_DAY + 2, zone_of(ZONE))
    with database.write() as connection:
        write_audit(
            connection,
            one.definition.key,
            at_us=when,
            actor="ann",
            action="kill_variant",
            detail={"variant": TREATMENT},
        )
    found = report(database, replace(one, definition=killed), now_us(), known=KNOWN, actions=ACTIONS)
    assert AlarmCode.LEAK in [alarm.code for alarm in found.alarms]


def test_an_experiment_without_exposures_has_an_empty_report(database: Database) -> None:
    assert build(database, registered(), now_us(), known=KNOWN, actions=ACTIONS).days == ()
    found = report(database, registered(started_at_us=now_us()), now_us(), known=KNOWN, actions=ACTIONS)
    assert found.as_of_us is None
    assert found.conclusion.decision is Decision.TOO_EARLY


def test_data_that_no_build_refreshed_for_a_day_is_stale(database: Database) -> None:
    world().write(database)
    built(database)
    found = report(database, registered(), now_us() + 30 * HOUR_US, known=KNOWN, actions=ACTIONS)
    assert AlarmCode.STALE_DATA in [alarm.code for alarm in found.alarms]


def _units(rows: list[dict[str, Any]]) -> set[str]:
    return {row["unit"] for row in rows}


def _totals(made: Any, metric: Metric) -> Any:
    """Σx of each unit that met one variant."""
    totals = []
    for unit in sorted(_units(made.exposed)):
        alone = type(made)([row for row in made.exposed if row["unit"] == unit], made.events)
        totals += [sums["x"] for sums in expected(alone, metric, now_us() + 1).values()]
    return np.array(totals)
