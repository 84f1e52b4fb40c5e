from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, update

from services.features.purge import Purge
from shared.observability.metrics import Metrics
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database
from shared.storage.tables import (
    events,
    experiment_slates,
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


def _purge(database: Database, metrics: Metrics, chunk_rows: int = 3) -> Purge:
    async def no_pause(_seconds: float) -> None:
        return

    settings = FeaturesSettings(event_retention_days=100, slate_retention_days=10)
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
