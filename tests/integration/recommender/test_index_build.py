"""`silkrec index build` from a shop's events and items."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select

from services.recommender.retrieval.index import ITEM_FILE, ROWS_FILE, VECTORS_FILE, RetrievalIndex
from shared.contracts.history import Float32
from shared.contracts.manifest import IndexManifest, ManifestAction, ModelManifest
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import events, items, models
from tests.integration.recommender.command import Command

pytestmark = pytest.mark.integration
ITEMS, USERS, EACH, CLICK, REVISION = 20, 40, 8, 2, 7
HIDDEN, DELETED, ENDED, LATER, UNKNOWN = 3, 4, 5, 6, 7
DAY_US = 86_400_000_000


@pytest.fixture
def shop(tmp_path: Path, database: Database) -> Command:
    """Items 1 to 20; every second user keeps to the odd ones, the others to the even ones."""
    now_us = time.time_ns() // 1000
    changed: dict[int, dict[str, Any]] = {
        HIDDEN: {"is_hidden": True},
        DELETED: {"deleted_at_us": now_us},
        ENDED: {"available_until_us": now_us - DAY_US},
        LATER: {"available_from_us": now_us + DAY_US},
        UNKNOWN: {"known": False},
    }
    with database.write() as connection:
        for number in range(1, ITEMS + 1):
            connection.execute(insert(items).values({**item(number, now_us), **changed.get(number, {})}))
        random = np.random.default_rng(0)
        for user in range(USERS):
            for place, half in enumerate(random.permutation(ITEMS // 2)[:EACH].tolist()):
                connection.execute(insert(events).values(event(user, 1 + 2 * half + user % 2, place)))
    return Command.of(tmp_path, database)


def item(number: int, now_us: int) -> dict[str, Any]:
    return {
        "item_index": number,
        "item_id": f"item-{number}",
        "known": True,
        "categories": [],
        "is_hidden": False,
        "created_at_us": now_us,
        "properties": {},
        "embeddings": {},
        "revision": min(number, REVISION),
        "updated_at_us": now_us,
    }


def event(user: int, item_index: int, place: int) -> dict[str, Any]:
    return {
        "event_id": f"{user}-{place}",
        "occurred_day": 0,
        "user_key": f"u:{user}",
        "item_index": item_index,
        "action": CLICK,
        "occurred_at_us": place * 1_000_000,
        "received_at_us": 0,
    }


def put_model(store: ArtifactStore, version: str, vectors: Float32, *, dim: int | None = None) -> None:
    with store.staging(ModelManifest, version) as folder:
        np.save(folder / "item_vectors.npy", vectors)
        manifest = ModelManifest(
            version=version,
            created_at=datetime.now(UTC),
            catalogue_version=1,
            architecture={},
            actions=(ManifestAction(name="click", code=CLICK),),
            vocabulary=len(vectors),
            vector_dim=vectors.shape[1] if dim is None else dim,
            feature_schema="f",
        )
        store.publish(folder, manifest)


def model_vectors(count: int) -> Float32:
    return np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)


def test_an_index_of_behaviour_opens_and_is_registered(shop: Command) -> None:
    built = shop.run("index", "build", "--model", "none")
    index = RetrievalIndex.open(shop.store, built["index_version"])
    assert not index.has_user_space
    assert index.catalogue_version == REVISION
    assert set(index.similar(8, 5).item_index % 2) == {0}
    with shop.database.read() as connection:
        row = connection.execute(select(models.c.kind, models.c.manifest)).one()
    assert row.kind == "index"
    assert IndexManifest.model_validate(row.manifest) == index.manifest
    (listed,) = shop.run("index", "list")["indexes"]
    assert (listed["index_version"], listed["active"]) == (index.version, False)


def test_items_that_only_a_change_brings_back_are_started_from_and_never_found(shop: Command) -> None:
    built = shop.run("index", "build", "--model", "none")
    index = RetrievalIndex.open(shop.store, built["index_version"])
    found = set(np.load(shop.store.folder(IndexManifest, index.version) / ROWS_FILE).tolist())
    assert found == set(range(1, ITEMS + 1)) - {HIDDEN, DELETED, ENDED}
    for left_out in (HIDDEN, DELETED, ENDED):
        assert index.contains(left_out)
        hits = index.similar(left_out, 5)
        assert len(hits) == 5
        assert not {HIDDEN, DELETED, ENDED} & set(hits.item_index.tolist())


def test_the_same_events_build_the_same_files(shop: Command) -> None:
    first, second = (
        shop.store.manifest(IndexManifest, shop.run("index", "build", "--model", "none")["index_version"])
        for _ in range(2)
    )
    assert first.version != second.version
    for name in (ITEM_FILE, ROWS_FILE, VECTORS_FILE):
        assert first.files[name] == second.files[name]


def test_a_model_gives_a_user_space_and_its_newer_items_are_found_by_behaviour(shop: Command) -> None:
    vectors = model_vectors(15)
    put_model(shop.store, "m-1", vectors)
    index = RetrievalIndex.open(shop.store, shop.run("index", "build", "--model", "m-1")["index_version"])
    assert (index.model_version, index.user_dim) == ("m-1", 6)
    wanted = vectors[8] / np.linalg.norm(vectors[8])
    assert index.by_user_vector(wanted, 1).score[0] == pytest.approx(max(vectors[found_rows(shop, index, 15)] @ wanted))
    assert len(index.similar(18, 5)) > 0


def found_rows(shop: Command, index: RetrievalIndex, below: int) -> list[int]:
    rows = np.load(shop.store.folder(IndexManifest, index.version) / ROWS_FILE)
    return [int(row) for row in rows if row < below]


def test_active_takes_the_model_of_the_active_release_and_none_before_it(shop: Command) -> None:
    assert shop.run("index", "build")["model_version"] is None
    put_model(shop.store, "m-1", model_vectors(15))
    built = shop.run("index", "build", "--model", "m-1")
    shop.run("releases", "promote", "--index", built["index_version"])
    assert shop.run("index", "build")["model_version"] == "m-1"


def test_a_model_that_is_missing_damaged_or_odd_is_refused(shop: Command) -> None:
    assert "m-0" in shop.refusal("index", "build", "--model", "m-0")
    put_model(shop.store, "m-1", model_vectors(15), dim=5)
    assert "train again" in shop.refusal("index", "build", "--model", "m-1")
    put_model(shop.store, "m-2", model_vectors(15))
    path = shop.store.folder(ModelManifest, "m-2") / "item_vectors.npy"
    path.write_bytes(path.read_bytes()[:-4])
    assert "damaged" in shop.refusal("index", "build", "--model", "m-2")
    assert shop.store.versions(IndexManifest) == []


def test_an_empty_shop_is_told_what_to_send(tmp_path: Path, database: Database) -> None:
    assert "send events" in Command.of(tmp_path, database).refusal("index", "build")
