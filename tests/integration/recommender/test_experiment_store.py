"""Experiments on both databases: who may change what, what clashes, what the audit says, and shipping."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registry.store import ExperimentStore, StoredExperiment
from services.recommender.experiments.registry.watcher import ExperimentWatcher
from shared.contracts.manifest import Release
from shared.contracts.variant_release import MOST
from shared.errors import Conflict, NotFound, SilkrecError, ValidationFailed
from shared.schema import Scene, Schema, UserField
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings
from shared.storage import deployments, variant_releases
from shared.storage.database import Database
from shared.storage.tables import experiments
from tests.unit.experiments.written import registered, varying

pytestmark = pytest.mark.integration
SCHEMA = Schema(
    scenes={"home": Scene(weights={"click": 1.0}), "cart": Scene(weights={"click": 1.0})},
    user_fields={"country": UserField(type="string")},
)
NOW_US = 1_700_000_000_000_000


def store(database: Database) -> ExperimentStore:
    return ExperimentStore(database, SCHEMA, now_us=lambda: NOW_US)


def started(database: Database, key: str = "mmr", **changes: Any) -> StoredExperiment:
    ours = store(database)
    ours.create(registered(key, **changes), actor="ann")
    return ours.start(key, actor="ann")


def test_an_experiment_goes_from_draft_to_shipped_and_back_and_the_audit_names_who(database: Database) -> None:
    ours = store(database)
    draft = ours.create(registered(), actor="ann (key_1)")
    edited = ours.edit("mmr", registered(hypothesis="another"), actor="bob", revision=draft.revision)
    running = ours.start("mmr", actor="ann (key_1)", revision=edited.revision)
    assert (running.status, running.registered.started_at_us) == (Status.RUNNING, NOW_US)
    ours.new_phase("mmr", actor="bob", weights=[0.2, 0.8])
    ours.kill_variant("mmr", "diverse", actor="bob")
    stopped = ours.stop("mmr", actor="bob")
    assert stopped.registered.definition.phase == 1
    assert stopped.registered.definition.variants[1].killed
    shipped = ours.ship("mmr", "diverse", actor="carol")
    assert shipped.registered.shipped == "diverse"
    assert ours.get("mmr") == shipped
    assert ours.roll_back("mmr", actor="dave").registered.shipped is None
    trail = [(entry.action, entry.actor) for entry in reversed(ours.audit("mmr"))]
    assert trail == [
        ("create", "ann (key_1)"),
        ("edit", "bob"),
        ("start", "ann (key_1)"),
        ("new_phase", "bob"),
        ("kill_variant", "bob"),
        ("stop", "bob"),
        ("ship", "carol"),
        ("roll_back", "dave"),
    ]
    edit = next(entry for entry in ours.audit("mmr") if entry.action == "edit")
    assert edit.detail == {"hypothesis": "another"}


def test_what_the_state_forbids_is_a_conflict_and_leaves_no_audit(database: Database) -> None:
    ours = store(database)
    draft = ours.create(registered(), actor="ann")
    attempts: list[Callable[[], StoredExperiment]] = [
        lambda: ours.create(registered(), actor="ann"),
        lambda: ours.stop("mmr", actor="ann"),
        lambda: ours.ship("mmr", "diverse", actor="ann"),
        lambda: ours.roll_back("mmr", actor="ann"),
        lambda: ours.start("mmr", actor="ann", revision=draft.revision - 1),
    ]
    for attempt in attempts:
        with pytest.raises(Conflict):
            attempt()
    with pytest.raises(NotFound):
        ours.start("nobody", actor="ann")
    ours.start("mmr", actor="ann")
    with pytest.raises(Conflict, match="draft, and mmr is running"):
        ours.edit("mmr", registered(), actor="ann")
    with pytest.raises(ValidationFailed, match="control"):
        ours.kill_variant("mmr", "control", actor="ann")
    with pytest.raises(ValidationFailed, match="fallback_unit"):
        ours.new_phase("mmr", actor="ann", keep_out_earlier=True)
    assert [entry.action for entry in ours.audit("mmr")] == ["start", "create"]


def test_two_that_change_one_setting_for_the_same_units_cannot_both_run(database: Database) -> None:
    ours = store(database)
    started(database)
    ours.create(registered("second"), actor="ann")
    with pytest.raises(Conflict, match="mmr is running and changes diversity too"):
        ours.start("second", actor="ann")
    started(database, "other-setting", variants=varying(ranker="retrieval"))
    started(database, "elsewhere", scenes=["cart"], variants=varying(hide_seen=False))
    started(database, "and-here", scenes=["home"], variants=varying(hide_seen=False))
    space = {"key": "split", "start": 0.0, "end": 0.5}
    started(database, "left", variants=varying(exploration=0.1), namespace=space)
    started(database, "right", variants=varying(exploration=0.2), namespace={**space, "start": 0.5, "end": 1.0})
    ours.stop("mmr", actor="ann")
    assert ours.start("second", actor="ann").status is Status.RUNNING


def test_of_two_that_clash_and_start_at_the_same_moment_one_does(database: Database) -> None:
    ours = store(database)
    keys = [f"e{number}" for number in range(4)]
    for key in keys:
        ours.create(registered(key), actor="ann")
    refused: list[str] = []

    def start(key: str) -> None:
        try:
            ours.start(key, actor="ann")
        except Conflict as error:
            refused.append(error.detail)

    threads = [threading.Thread(target=start, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert len(ours.list(Status.RUNNING)) == 1


def test_a_declaration_that_has_gone_is_found_before_the_start(database: Database) -> None:
    store(database).create(registered(targeting='user.country = "at"'), actor="ann")
    with pytest.raises(ValidationFailed) as caught:
        ExperimentStore(database, Schema()).start("mmr", actor="ann")
    assert [fault.pointer for fault in caught.value.errors] == ["/targeting"]


def test_shipping_keeps_release_and_settings_and_a_rolled_back_release_takes_it_along(database: Database) -> None:
    ours = store(database)
    release = Release(release="r-1", model_version=None, index_version="i-1")
    with database.write() as connection:
        deployments.promote(connection, release, settings={"recommender.candidates": 300}, actor="ann")
    for key, setting in (("one", {"diversity": 0.3}), ("two", {"ranker": "retrieval"})):
        started(database, key, variants=varying(**setting))
        assert ours.ship(key, "changed", actor="ann").status is Status.STOPPED, "what runs is stopped by it"
    trail = [(entry.action, entry.actor) for entry in ours.audit("two")]
    assert trail[:2] == [("ship", "ann"), ("stop", "ann")], "and the audit says that it was"
    with database.read() as connection:
        active = deployments.active(connection)
    assert active is not None
    assert active.release == release
    assert active.settings["recommender.candidates"] == 300
    assert [entry["experiment"] for entry in active.settings["serving"]] == ["one", "two"]
    assert load_settings(shipped=active.settings, env={}).settings.recommender.candidates == 300
    ours.roll_back("one", actor="ann")
    assert [one.registered.shipped for one in sorted(ours.list(), key=lambda one: one.key)] == [None, "changed"]
    database.transact(lambda connection: deployments.roll_back(connection, actor="ann", to_version=active.version - 2))
    assert [one.registered.shipped for one in ours.list()] == [None, None]


def test_a_holdout_has_nothing_to_ship(database: Database) -> None:
    parts = [{"key": "held_out", "weight": 0.1}, {"key": "rest", "weight": 0.9}]
    started(database, "winter", variants=parts, holdout={})
    with pytest.raises(Conflict, match="is a holdout"):
        store(database).ship("winter", "rest", actor="ann")


def releasing(index: str) -> list[dict[str, Any]]:
    return varying(release={"model": f"m-of-{index}", "index": index})


def test_releases_of_variants_are_bounded_and_read_by_both_services(database: Database) -> None:
    ours = store(database)
    for place, index in enumerate(("i-1", "i-2", "i-3")):
        space = {"key": "split", "start": place / 3, "end": (place + 1) / 3}
        ours.create(registered(index, variants=releasing(index), namespace=space), actor="ann")

    def asked() -> list[str | None]:
        with database.read() as connection:
            return [one.index for one in variant_releases.wanted(connection)]

    assert len(asked()) == MOST, "drafts are loaded ahead, while there is room"
    for index in ("i-1", "i-2"):
        ours.start(index, actor="ann")
    assert set(asked()) == {"i-1", "i-2"}
    with pytest.raises(Conflict, match="3 releases beside"):
        ours.start("i-3", actor="ann")
    ours.kill_variant("i-1", "changed", actor="ann")
    assert ours.start("i-3", actor="ann").status is Status.RUNNING
    assert set(asked()) == {"i-2", "i-3"}


def test_a_shipped_release_gives_way_to_the_one_before_unless_another_was_promoted_since(database: Database) -> None:
    ours = store(database)
    first = Release(release="r-1", model_version="m-1", index_version="i-1")
    with database.write() as connection:
        deployments.promote(connection, first, settings={}, actor="ann")

    def active() -> Release:
        with database.read() as connection:
            found = deployments.active(connection)
        assert found is not None
        return found.release

    mixed = varying(release={"model": "m-9", "index": "i-9"}, diversity=0.4)
    started(database, "here", variants=mixed, scenes=["home"])
    with pytest.raises(Conflict, match="serves every scene"):
        ours.ship("here", "changed", actor="ann")
    ours.stop("here", actor="ann")
    started(database, variants=mixed)
    ours.ship("mmr", "changed", actor="ann")
    assert (active().model_version, active().index_version) == ("m-9", "i-9")
    ours.ship("mmr", "changed", actor="ann")
    ours.roll_back("mmr", actor="ann")
    assert active() == first, "also when it was shipped twice"
    ours.ship("mmr", "changed", actor="ann")
    later = Release(release="r-2", model_version="m-1", index_version="i-1")
    with database.write() as connection:
        deployments.promote(connection, later, settings=None, actor="ann")
    ours.roll_back("mmr", actor="ann")
    assert active() == later


def test_before_the_first_release_settings_can_be_shipped_too(database: Database) -> None:
    started(database)
    assert store(database).ship("mmr", "diverse", actor="ann").registered.shipped == "diverse"


def test_the_follower_sees_changes_and_keeps_what_it_knows_without_a_database(database: Database) -> None:
    ours = store(database)
    watcher = ExperimentWatcher(database, SCHEMA)

    def running() -> list[str]:
        scene = watcher.current().scene("home")
        return [] if scene is None else [live.definition.key for live in scene.experiments]

    async def scenario() -> None:
        assert await watcher.look()
        assert not await watcher.look(), "nothing changed"
        await database.run(started, database)
        assert await watcher.look()
        assert running() == ["mmr"]
        away = Database("mysql+pymysql://nobody@127.0.0.1:1/none", DatabaseSettings(connect_timeout_s=0.2))
        watcher._database = away
        assert not await watcher.look()
        assert "does not answer" in watcher.status
        assert running() == ["mmr"]
        away.close()
        watcher._database = database
        await database.run(lambda: ours.ship("mmr", "diverse", actor="ann"))
        assert await watcher.look()
        assert (running(), watcher.status) == ([], "ok")
        scene = watcher.current().scene("home")
        assert scene is not None
        assert scene.shipped == {"diversity": 0.6}

    asyncio.run(scenario())


def test_a_document_of_another_release_costs_that_experiment_alone(database: Database) -> None:
    started(database)
    started(database, "newer", variants=varying(ranker="retrieval"))
    with database.write() as connection:
        row = {"document": {"format": 9}}
        connection.execute(update(experiments).where(experiments.c.experiment == "newer").values(**row))
    watcher = ExperimentWatcher(database, SCHEMA)
    asyncio.run(watcher.look())
    scene = watcher.current().scene("home")
    assert scene is not None
    assert [live.definition.key for live in scene.experiments] == ["mmr"]
    assert watcher.status == "left out: newer"
    with pytest.raises(SilkrecError, match="/format"):
        store(database).get("newer")
