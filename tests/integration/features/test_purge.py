from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, update

from services.features.purge import Purge
from services.features.purge_experiments import RESULTS, UNITS
from shared.observability.metrics import Metrics
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database
from shared.storage.tables import (
    events,
    experiment_daily,
    experiment_excluded_units,
    experiment_item_daily,
    experiment_latency_daily,
    experiment_losses,
    experiment_progress,
    experiment_quality_daily,
    experiment_slates,
    experiment_unit_days,
    experiments,
    exposures,
    item_daily,
    recommendation_items,
    recommendations,
    user_state,
)
from tests.integration.features.helpers import add_events, add_exposure, add_slate

pytestmark = pytest.mark.integration
DAY_S = 86_400
TODAY = 1000


def _purge(
    database: Database, metrics: Metrics, chunk_rows: int = 3, settings: FeaturesSettings | None = None
) -> Purge:
    async def no_pause(_seconds: float) -> None:
        return

    settings = settings or FeaturesSettings(event_retention_days=100, slate_retention_days=10)
    return Purge(database, settings, metrics, clock=lambda: float(TODAY * DAY_S), sleep=no_pause, chunk_rows=chunk_rows)


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def test_rows_past_their_retention_go_in_chunks_and_younger_ones_stay(database: Database) -> None:
    add_events(database, "u:old", *range(8), start_s=DAY_S, day=1)
    add_events(database, "u:new", *range(2), start_s=(TODAY - 50) * DAY_S, day=TODAY - 50)
    for place in range(4):
        add_slate(database, "u:old", f"old{place}", 1, 2, day=TODAY - 11)
    add_slate(database, "u:new", "new", 1, 2, day=TODAY - 9)
    add_exposure(database, "u:old", "old0", "old1", day=TODAY - 11)
    add_exposure(database, "u:new", "new", day=TODAY - 9)
    with database.write() as connection:
        for day in (1, 2, TODAY - 50):
            connection.execute(item_daily.insert().values(occurred_day=day, item_index=1, action=2, events=1))
    metrics = Metrics("features")
    purge = _purge(database, metrics)
    removed = asyncio.run(purge.purge_once())
    assert removed == {
        "events": 8,
        "item_daily": 2,
        "recommendation_items": 8,
        "recommendations": 4,
        "experiment_slates": 2,
        "late_slates": 0,
        "late_experiment_slates": 0,
        "late_exposures": 0,
        **dict.fromkeys((table.name for table in (*UNITS, *RESULTS)), 0),
    }
    assert [count(database, table) for table in (events, item_daily, recommendation_items, recommendations)] == [
        2,
        1,
        2,
        1,
    ]
    assert [count(database, exposures), count(database, experiment_slates)] == [2, 1], "exposures outlive their slates"
    assert b'silkrec_features_purged_rows_total{table="events"} 8.0' in metrics.render()
    assert set(asyncio.run(purge.purge_once()).values()) == {0}


def test_an_archive_that_was_imported_today_stays_with_its_counts(database: Database) -> None:
    add_events(database, "u:old", *range(8), start_s=DAY_S, day=1)
    with database.write() as connection:
        connection.execute(update(events).values(received_at_us=TODAY * DAY_S * 1_000_000))
        connection.execute(item_daily.insert().values(occurred_day=1, item_index=1, action=2, events=8))
    removed = asyncio.run(_purge(database, Metrics("features")).purge_once())
    assert set(removed.values()) == {0}


def test_slates_of_a_deleted_user_that_arrived_late_go_too(database: Database) -> None:
    add_slate(database, "u:gone", "late", 1, day=TODAY - 1)
    add_slate(database, "u:here", "kept", 1, day=TODAY - 1)
    add_exposure(database, "u:gone", "late", day=TODAY - 1)
    add_exposure(database, "u:here", "kept", day=TODAY - 1)
    with database.write() as connection:
        connection.execute(
            user_state.insert().values(user_key="u:gone", revision=1, deleted_at_us=TODAY * DAY_S * 1_000_000)
        )
    removed = asyncio.run(_purge(database, Metrics("features")).purge_once())
    assert (removed["late_slates"], removed["late_experiment_slates"], removed["late_exposures"]) == (1, 1, 1)
    assert [count(database, exposures), count(database, experiment_slates)] == [1, 1]
    assert [count(database, recommendations), count(database, recommendation_items)] == [1, 1]


@pytest.mark.parametrize(
    ("status", "stopped_day", "kept"),
    [
        ("running", None, {*UNITS, *RESULTS}),
        ("stopped", TODAY - 19, {*UNITS, *RESULTS}),
        ("stopped", TODAY - 21, {*RESULTS}),
        ("stopped", TODAY - 31, set()),
    ],
    ids=["running", "just stopped", "stopped", "long stopped"],
)
def test_a_stopped_experiment_loses_its_units_first_and_its_results_later(
    database: Database, status: str, stopped_day: int | None, kept: set[Any]
) -> None:
    _ran(database, status, stopped_day)
    settings = FeaturesSettings(experiment_unit_retention_days=20, experiment_result_retention_days=30)
    removed = asyncio.run(_purge(database, Metrics("features"), settings=settings).purge_once())
    for table in (*UNITS, *RESULTS):
        rows = 0 if table in kept else 5
        assert (removed[table.name], count(database, table)) == (rows, 5 - rows), table.name


def test_the_units_of_an_experiment_may_not_outlive_the_exposures_that_lead_a_deletion_to_them() -> None:
    with pytest.raises(ValidationError, match="experiment_result_retention_days"):
        FeaturesSettings(experiment_unit_retention_days=31, experiment_result_retention_days=30)


def _ran(database: Database, status: str, stopped_day: int | None) -> None:
    """Five rows in each table that an analysis fills."""
    at_us = None if stopped_day is None else stopped_day * DAY_S * 1_000_000
    experiment = {"experiment": "mmr", "status": status, "document": {}, "revision": 1, "stopped_at_us": at_us}
    key = {"experiment": "mmr", "phase": 0}
    with database.write() as connection:
        connection.execute(experiments.insert().values(**experiment, created_at_us=0, updated_at_us=0))
        for place in range(5):
            unit, day = {**key, "unit": f"u:{place}"}, {**key, "day": TODAY - 40 + place}
            rows: dict[Any, dict[str, Any]] = {
                exposures: {
                    **unit,
                    "variant": "a",
                    "first_at_us": 0,
                    "first_day": 0,
                    "segment": "",
                    "simulated": False,
                },
                experiment_excluded_units: unit,
                experiment_unit_days: {**unit, **day, "action": 1, "age": 0, "events": 1, "value": 0.0, "seen": 1},
                experiment_progress: {**day, **dict.fromkeys(("as_of_us", "event_seq", "built_at_us", "seconds"), 0)},
                experiment_daily: {**day, "metric": "ctr", "variant": "a", "segment": "", "sums": {}},
                experiment_quality_daily: {**day, "variant": "a", "sums": {}},
                experiment_item_daily: {**day, "variant": "a", "item_index": 1, "slates": 1},
                experiment_latency_daily: {**day, "variant": "a", "sample": {}, "lifts": []},
                experiment_losses: {**key, "variant": f"v{place}", "slates": 1},
            }
            rows[experiment_progress]["has_sums"] = True
            for table, row in rows.items():
                connection.execute(table.insert().values(**row))
