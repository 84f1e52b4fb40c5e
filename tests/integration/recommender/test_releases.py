"""`silkrec releases promote|rollback|list`: what is checked before it is written, and what is written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services.cli.releases import lock
from services.recommender.retrieval.index import ITEM_FILE
from shared.contracts.manifest import IndexManifest, ModelManifest, Release
from shared.storage import deployments
from shared.storage.database import Database
from shared.storage.tables import deployments as deployments_table
from shared.storage.tables import models
from tests.integration.recommender.command import Command
from tests.unit.recommender.indexes import put_index, put_model

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tmp_path: Path, database: Database) -> Command:
    """Models m-1 and m-2, an index of each, and one of behaviour alone."""
    command = Command.of(tmp_path, database)
    for model in ("m-1", "m-2"):
        put_model(command.store, model)
        put_index(command.store, f"i-of-{model}", model_version=model)
    put_index(command.store, "i-alone")
    return command


def count(place: Command) -> int:
    with place.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(deployments_table)) or 0)


def test_a_promoted_pair_is_active_and_registered(place: Command) -> None:
    made = place.run(
        "releases", "promote", "--model", "m-1", "--index", "i-of-m-1", "--release", "spring", "--note", "x"
    )
    with place.database.read() as connection:
        active = deployments.active(connection)
        registered = set(connection.scalars(select(models.c.version)))
    assert active is not None
    assert (active.release.release, active.release.model_version, active.note) == ("spring", "m-1", "x")
    assert made["deployment"] == active.version
    assert registered == {"m-1", "i-of-m-1"}


def test_the_other_half_of_a_pair_is_found(place: Command) -> None:
    assert place.run("releases", "promote", "--model", "m-2")["index_version"] == "i-of-m-2"
    assert place.run("releases", "promote", "--index", "i-of-m-1")["model_version"] == "m-1"
    assert place.run("releases", "promote", "--index", "i-alone")["model_version"] is None


def test_vectors_of_another_model_are_refused(place: Command) -> None:
    words = place.refusal("releases", "promote", "--model", "m-2", "--index", "i-of-m-1")
    assert "silkrec index build --model m-2" in words
    assert "--model m-1" in place.refusal("releases", "promote", "--model", "none", "--index", "i-of-m-1")
    assert count(place) == 0


def test_missing_and_damaged_folders_are_refused(place: Command) -> None:
    assert "i-9" in place.refusal("releases", "promote", "--index", "i-9")
    assert "m-9" in place.refusal("releases", "promote", "--model", "m-9", "--index", "i-alone")
    path = place.store.folder(IndexManifest, "i-alone") / ITEM_FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in place.refusal("releases", "promote", "--index", "i-alone")
    assert count(place) == 0


def test_a_model_whose_actions_mean_something_else_here_is_refused(place: Command) -> None:
    path = place.store.folder(ModelManifest, "m-1") / "manifest.json"
    content = json.loads(path.read_text())
    content["actions"][0]["name"] = "bite"
    path.write_text(json.dumps(content))
    assert "bite" in place.refusal("releases", "promote", "--model", "m-1")


def test_rolling_back_restores_release_and_settings(place: Command) -> None:
    place.run("releases", "promote", "--index", "i-alone", "--setting", "recommender.candidates=300")
    before = place.run("releases", "list")["deployments"][0]
    place.run("releases", "promote", "--model", "m-1", "--setting", "recommender.candidates=100")
    after = place.run("releases", "rollback")
    same = ("release", "model_version", "index_version", "settings")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    rows = place.run("releases", "list")["deployments"]
    assert [row["deployment"] for row in rows] == sorted((row["deployment"] for row in rows), reverse=True)
    assert [row["active"] for row in rows] == [True, False, False]


def test_rolling_back_to_what_cannot_be_read_is_refused(place: Command) -> None:
    first = place.run("releases", "promote", "--index", "i-alone")["deployment"]
    place.run("releases", "promote", "--model", "m-1")
    (place.store.folder(IndexManifest, "i-alone") / ITEM_FILE).unlink()
    assert "missing" in place.refusal("releases", "rollback", "--to", str(first))
    assert "no such older" in place.refusal("releases", "rollback", "--to", "999999")
    assert count(place) == 2


def test_settings_stay_in_force_until_they_are_replaced(place: Command) -> None:
    place.run("releases", "promote", "--index", "i-alone", "--setting", "recommender.candidates=300")
    kept = place.run("releases", "promote", "--model", "m-1", "--setting", "recommender.per_source=50")
    assert kept["settings"] == {"recommender.candidates": 300, "recommender.per_source": 50}
    alone = place.run("releases", "promote", "--setting", "recommender.candidates=200")
    assert alone["release"] == kept["release"]
    assert alone["settings"]["recommender.candidates"] == 200


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("recommender.candidate=1", "did you mean recommender.candidates"),
        ("recommender.candidates=many", "recommender.candidates"),
        ("recommender.candidates", "name=value"),
        ("recommender.reserve_ms=500", "below recommender.deadline_ms"),
        ("database.url=sqlite:///x", "on each host"),
        ("auth.user_token_secret=x", "on each host"),
        ("recommender={}", "no such setting"),
    ],
)
def test_what_is_no_setting_is_not_shipped(place: Command, setting: str, says: str) -> None:
    assert says in place.refusal("releases", "promote", "--index", "i-alone", "--setting", setting)
    assert count(place) == 0


def test_a_name_stands_for_one_model_and_index_for_ever(place: Command) -> None:
    place.run("releases", "promote", "--index", "i-alone", "--release", "spring")
    place.run("releases", "promote", "--index", "i-alone", "--release", "spring")
    assert "choose another" in place.refusal("releases", "promote", "--model", "m-1", "--release", "spring")
    assert "letters" in place.refusal("releases", "promote", "--model", "m-1", "--release", "a:b")


def test_two_promotions_at_once_both_count(place: Command) -> None:
    started = [
        place.start("releases", "promote", "--index", "i-alone", "--setting", setting)
        for setting in ("recommender.candidates=300", "recommender.per_source=50")
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    newest, older = place.run("releases", "list")["deployments"]
    assert newest["settings"] == {"recommender.candidates": 300, "recommender.per_source": 50}
    assert len(older["settings"]) == 1


def test_a_promotion_waits_for_the_one_before_it_and_keeps_its_settings(place: Command) -> None:
    release = Release(release="first", model_version=None, index_version="i-alone")
    with place.database.write() as connection:
        lock(connection)
        later = place.start("releases", "promote", "--index", "i-alone", "--setting", "recommender.per_source=50")
        with pytest.raises(subprocess.TimeoutExpired):
            later.communicate(timeout=4)
        settings = {"recommender.candidates": 300}
        deployments.promote(connection, release, settings=settings, actor="test")
    said, _ = later.communicate(timeout=120)
    assert json.loads(said)["settings"] == {"recommender.candidates": 300, "recommender.per_source": 50}
