"""What a full journal drops of an experiment reaches its banner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from services.recommender.experiments import metrics
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.registry.store import ExperimentStore
from services.recommender.experiments.report import AlarmCode
from services.recommender.journal import Journal
from services.recommender.metrics import JournalMetrics
from shared.actions import ActionTable
from shared.observability.metrics import Metrics
from shared.schema import EventType, Scene, Schema
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import experiment_losses
from tests.integration.recommender.test_exposures import met, served
from tests.unit.experiments.written import registered

pytestmark = pytest.mark.integration
SCHEMA = Schema(
    scenes={"home": Scene(weights={"click": 1.0})},
    event_types={"impression": EventType(code=1), "click": EventType(code=2)},
)


def test_slates_that_a_full_journal_drops_are_told_once_the_database_answers(
    database: Database, tmp_path: Path
) -> None:
    away = Database("mysql+pymysql://nobody@127.0.0.1:1/none", DatabaseSettings(connect_timeout_s=0.2))

    async def scenario() -> None:
        told = JournalMetrics(Metrics("test"))
        ours = Journal(state=tmp_path, process="test", database=database, metrics=told, max_slates=1)
        assert await ours.append(served("rec-0", met()), timeout_s=30)
        for number in range(1, 4):
            both = met("control" if number == 3 else "diverse"), met("on", "rules", phase=2)
            assert not await ours.append(served(f"rec-{number}", *both), timeout_s=30)
        ours._database = away
        assert not await ours.drain_waiting()
        ours._database = database
        assert await ours.drain_waiting()
        assert await ours.drain_waiting(), "nothing is told twice"
        await ours.close(drain_s=0.0)

    asyncio.run(scenario())
    away.close()
    with database.read() as connection:
        found = [tuple(row) for row in connection.execute(select(experiment_losses))]
    assert sorted(found) == [("mmr", 0, "control", 1), ("mmr", 0, "diverse", 2), ("rules", 2, "on", 3)]
    store = ExperimentStore(database, SCHEMA)
    store.create(registered(), actor="ann")
    report = Results(database, store, metrics.parse([]), ActionTable.from_schema(SCHEMA)).of("mmr")
    (alarm,) = [one for one in report.alarms if one.code is AlarmCode.LOST_SLATES]
    assert (alarm.blocks, alarm.facts) == (True, {"slates": 3, "share": 1.0})
