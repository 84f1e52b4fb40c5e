"""Open Bandit's logs into both databases: all of it once, however often it is tried, and serving stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import Table, func, select, update

from services.cli.open_bandit import store
from services.cli.open_bandit.store import Imported, import_arms
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy
from services.recommender.experiments.registry.store import ExperimentStore
from shared.actions import ActionTable
from shared.errors import Conflict, SilkrecError, ValidationFailed
from shared.schema import EventType, Scene, Schema
from shared.storage.database import Database
from shared.storage.tables import (
    events,
    experiment_audit,
    experiment_slates,
    experiments,
    exposures,
    item_daily,
    items,
    user_state,
)
from tests.unit.experiments.bandit_logs import GREEDY, ITEMS, UNIFORM, drawn

pytestmark = pytest.mark.integration
SCHEMA = Schema()
ACTIONS = ActionTable.from_schema(SCHEMA)
LOGS = {Policy.RANDOM: drawn(UNIFORM, 150, 1), Policy.BTS: drawn(GREEDY, 120, 2)}
CLICKS = sum(int(log.click.sum()) for log in LOGS.values())


def put(database: Database, **options: Any) -> Imported:
    return import_arms(database, ACTIONS, Campaign.ALL, LOGS, now_us=1, **options)


def count(database: Database, table: Table) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def counts(database: Database) -> list[int]:
    return [count(database, table) for table in (experiments, exposures, experiment_slates, events)]


def test_an_import_is_an_experiment_of_two_arms_and_changes_nothing_that_is_served(database: Database) -> None:
    done = put(database)
    assert (done.rows, done.clicks, done.new_exposures, done.new_events) == (270, CLICKS, 270, 270 + CLICKS)
    assert counts(database) == [1, 270, 270, 270 + CLICKS]
    with database.read() as connection:
        row = connection.execute(select(experiments)).one()
        counted = connection.execute(
            select(exposures.c.variant, func.count().label("clicks"))
            .join(events, events.c.user_key == exposures.c.unit)
            .where(events.c.action == ACTIONS.by_name["click"].code)
            .group_by(exposures.c.variant)
        ).all()
        hidden = set(connection.scalars(select(items.c.is_hidden)))
        audit = connection.execute(select(experiment_audit)).one()
        latencies = set(connection.scalars(select(experiment_slates.c.took_us)))
    assert latencies == {None}, "the log has none, and none is not 0 ms"
    listed = ExperimentStore(database, SCHEMA).list()
    assert [one.registered.definition.key for one in listed] == [row.experiment]
    assert listed[0].status is Status.STOPPED
    assert [one.key for one in listed[0].registered.definition.variants] == ["random", "bts"]
    assert {row.variant: row.clicks for row in counted} == {
        str(policy): int(log.click.sum()) for policy, log in LOGS.items()
    }
    assert hidden == {True}
    assert audit.action == "import"
    assert count(database, items) == ITEMS
    assert count(database, item_daily) == count(database, user_state) == 0


def test_a_second_import_finds_everything_there(database: Database) -> None:
    put(database)
    before = counts(database)
    again = put(database)
    assert (again.new_exposures, again.new_events) == (0, 0)
    assert counts(database) == before
    assert count(database, experiment_audit) == 1


def test_a_killed_import_is_ended_by_the_next(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 50)

    def die(_rows: int) -> None:
        raise SilkrecError("killed")

    with pytest.raises(SilkrecError, match="killed"):
        put(database, advance=die)
    assert counts(database)[1] == 50
    assert put(database).new_exposures == 220
    assert counts(database) == [1, 270, 270, 270 + CLICKS]


def test_somebody_elses_experiment_of_that_name_is_left_alone(database: Database) -> None:
    put(database)
    with database.write() as connection:
        connection.execute(update(experiments).values(document={"format": 1, "owner": "ann"}))
    with pytest.raises(Conflict, match="the import did not make"):
        put(database)


def test_a_shop_without_clicks_is_told_so_before_anything_is_written(database: Database) -> None:
    schema = Schema(scenes={"home": Scene(weights={"view": 1.0})}, event_types={"view": EventType(code=1)})
    actions = ActionTable.from_schema(schema)
    with pytest.raises(ValidationFailed, match="declares no event type 'impression'"):
        import_arms(database, actions, Campaign.ALL, LOGS, now_us=1)
    assert counts(database) == [0, 0, 0, 0]


def test_all_columns_hold_what_the_log_says(database: Database) -> None:
    put(database)
    log: BanditLog = LOGS[Policy.BTS]
    with database.read() as connection:
        found = connection.execute(select(exposures).where(exposures.c.variant == "bts")).all()
    assert sorted(row.first_at_us for row in found) == np.sort(log.at_us).tolist()
    assert not any(row.simulated for row in found)
