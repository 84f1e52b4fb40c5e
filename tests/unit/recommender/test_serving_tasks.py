"""What is served: releases are taken when they are good and the engines ready; refreshes survive a dead database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from services.recommender.catalogue import Catalogue
from services.recommender.metrics import ServingMetrics
from services.recommender.serving import ServingState, StateHolder
from services.recommender.serving.catalogue_refresher import CHUNK, CatalogueRefresher
from services.recommender.serving.popular_refresher import PopularRefresher
from services.recommender.serving.releases import MODEL_WAIT_S, RETRY_S, ReleaseWatcher
from shared.actions import ActionTable
from shared.contracts.manifest import Deployment, IndexManifest, Release
from shared.errors import DatabaseUnavailable
from shared.observability.metrics import Metrics
from shared.storage.artifacts import ArtifactStore
from tests.unit.recommender.indexes import put_index, put_model
from tests.unit.recommender.serving_app import SCHEMA, Row, rows

T = TypeVar("T")


@dataclass
class Threads:
    """Runs at once; `down` is a database that is away."""

    down: bool = False

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        if self.down:
            raise DatabaseUnavailable("the database does not answer")
        return work(*args)


@dataclass
class Inference:
    versions: set[str] = field(default_factory=set)

    async def ready(self, model_version: str) -> bool:
        return model_version in self.versions


class Shop:
    """A watcher with all that it looks at in the test's hands."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = ArtifactStore(tmp_path / "artifacts")
        self.threads, self.inference = Threads(), Inference()
        self.holder = StateHolder(ServingState.empty(Catalogue(SCHEMA)))
        self.metrics = Metrics("recommender")
        self.now = 100.0
        self.deployment: Deployment | None = None
        self.watcher = ReleaseWatcher(
            database=self.threads,
            active=lambda: self.deployment,
            store=self.store,
            holder=self.holder,
            inference=self.inference,
            metrics=ServingMetrics(self.metrics),
            refresh_s=1.0,
            clock=lambda: self.now,
        )

    def promote(self, release: str, index: str | None, model: str | None = None) -> None:
        version = 1 if self.deployment is None else self.deployment.version + 1
        named = Release(release=release, model_version=model, index_version=index)
        self.deployment = Deployment(version=version, release=named)

    def look(self) -> str:
        asyncio.run(self.watcher.look())
        return self.holder.current().release_name


def test_nothing_promoted_is_no_fault(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    assert shop.look() == ""
    assert shop.watcher.status == "none promoted yet"


@pytest.mark.parametrize("there", [True, False])
def test_the_first_look_is_over_once_a_release_serves_or_cannot_be_had(tmp_path: Path, there: bool) -> None:
    shop = Shop(tmp_path)
    put_index(shop.store, "i-1")
    shop.promote("r-1", "i-1" if there else "i-9")

    async def scenario() -> None:
        assert not shop.watcher.looked.is_set()
        running = asyncio.create_task(shop.watcher.run())
        await asyncio.wait_for(shop.watcher.looked.wait(), 10)
        running.cancel()

    asyncio.run(scenario())
    assert shop.holder.current().release_name == ("r-1" if there else "")


def test_a_release_is_opened_and_swapped_as_a_whole(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    put_index(shop.store, "i-1")
    shop.promote("r-1", "i-1")
    assert shop.look() == "r-1"
    state = shop.holder.current()
    assert state.index_version == "i-1"
    assert state.index is not None
    assert len(state.index.similar(3, 5)) == 5
    assert shop.watcher.status == "ok"


def test_a_damaged_index_never_replaces_a_good_one_and_is_reported(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    put_index(shop.store, "i-1")
    put_index(shop.store, "i-22")
    shop.promote("r-1", "i-1")
    assert shop.look() == "r-1"
    damaged = shop.store.folder(IndexManifest, "i-22") / "item.faiss"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shop.promote("r-2", "i-22")
    assert shop.look() == "r-1"
    assert "r-2 is refused" in shop.watcher.status
    assert "damaged" in shop.watcher.status
    assert b'release_refusals_total{cause="artifact"} 1.0' in shop.metrics.render()
    damaged.write_bytes(content)
    assert shop.look() == "r-1", "a refused folder is not hashed again at once"
    shop.now += RETRY_S
    assert shop.look() == "r-2"
    assert shop.watcher.status == "ok"


def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.promote("r-1", "i-none")
    assert shop.look() == ""
    assert "r-1 is refused" in shop.watcher.status


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    put_model(shop.store, "m-1")
    put_index(shop.store, "i-1", model_version="m-2")
    shop.promote("r-1", "i-1", "m-1")
    assert shop.look() == ""
    assert "do not compare" in shop.watcher.status


def test_rolling_back_is_the_same_path(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    put_index(shop.store, "i-1")
    put_index(shop.store, "i-22")
    shop.promote("r-1", "i-1")
    shop.look()
    shop.promote("r-2", "i-22")
    assert shop.look() == "r-2"
    shop.promote("r-1", "i-1")
    assert shop.look() == "r-1"
    assert shop.holder.current().index_version == "i-1"


def test_the_swap_waits_for_the_engines_but_not_for_ever(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    for model, index in (("m-1", "i-1"), ("m-22", "i-22")):
        put_model(shop.store, model)
        put_index(shop.store, index, model_version=model)
    shop.inference.versions = {"m-1"}
    shop.promote("r-1", "i-1", "m-1")
    assert shop.look() == "r-1"
    shop.promote("r-2", "i-22", "m-22")
    assert shop.look() == "r-1"
    assert "waits for inference" in shop.watcher.status
    shop.inference.versions.add("m-22")
    assert shop.look() == "r-2"
    shop.promote("r-1", "i-1", "m-1")
    shop.inference.versions = {"m-22"}
    assert shop.look() == "r-2"
    shop.now += MODEL_WAIT_S
    assert shop.look() == "r-1"


def test_the_swap_waits_for_no_engine_that_is_dead(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    for model, index in (("m-1", "i-1"), ("m-22", "i-22")):
        put_model(shop.store, model)
        put_index(shop.store, index, model_version=model)
    shop.promote("r-1", "i-1", "m-1")
    assert shop.look() == "r-1", "the first release is taken without any engine: popular and item to item need none"
    shop.promote("r-2", "i-22", "m-22")
    assert shop.look() == "r-2"


def test_a_newer_promotion_replaces_one_that_still_waits(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    for model, index in (("m-1", "i-1"), ("m-22", "i-22"), ("m-333", "i-333")):
        put_model(shop.store, model)
        put_index(shop.store, index, model_version=model)
    shop.inference.versions = {"m-1"}
    shop.promote("r-1", "i-1", "m-1")
    shop.look()
    shop.promote("r-2", "i-22", "m-22")
    assert shop.look() == "r-1"
    shop.promote("r-3", "i-333", "m-333")
    shop.inference.versions = {"m-1", "m-333"}
    assert shop.look() == "r-3"


def test_without_the_database_the_last_release_stays(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    put_index(shop.store, "i-1")
    shop.promote("r-1", "i-1")
    shop.look()
    shop.threads.down = True
    assert shop.look() == "r-1"
    assert shop.watcher.database_status == "the database does not answer"


@dataclass
class Items:
    rows: list[Row]

    def changed_items(self, since_revision: int, limit: int = 5000) -> list[Row]:
        newer = sorted((row for row in self.rows if row.revision > since_revision), key=lambda row: row.revision)
        return newer[:limit]


def catalogue_refresher(reader: Items, threads: Threads) -> tuple[CatalogueRefresher, StateHolder]:
    holder = StateHolder(ServingState.empty(Catalogue(SCHEMA)))
    metrics = ServingMetrics(Metrics("recommender"))
    return (
        CatalogueRefresher(database=threads, reader=reader, holder=holder, metrics=metrics, refresh_s=1.0),
        holder,
    )


def test_the_catalogue_follows_what_changed_in_chunks() -> None:
    many = [Row(n, f"item-{n}", revision=n + 1) for n in range(2 * CHUNK + 10)]
    refresher, holder = catalogue_refresher(Items(many), Threads())
    assert not refresher.loaded
    assert asyncio.run(refresher.refresh()) == len(many)
    assert refresher.loaded
    assert holder.current().catalogue.count == len(many)
    assert len(holder.current().fresh.item_index) == len(many)
    many.append(Row(3, "item-3", is_hidden=True, revision=len(many) + 1))
    assert asyncio.run(refresher.refresh()) == 1
    assert not holder.current().catalogue.servable(0, np.array([3], np.int32))[0]
    assert asyncio.run(refresher.refresh()) == 0


def test_an_empty_catalogue_counts_as_read_and_a_dead_database_does_not() -> None:
    threads = Threads(down=True)
    refresher, holder = catalogue_refresher(Items([]), threads)
    asyncio.run(refresher.refresh())
    assert not refresher.loaded
    assert refresher.status == "the database does not answer"
    threads.down = False
    asyncio.run(refresher.refresh())
    assert refresher.loaded
    assert holder.current().catalogue.count == 0


@dataclass
class Daily:
    occurred_day: Any
    item_index: Any
    action: Any
    events: Any


@dataclass
class Counts:
    events: list[int]

    def daily_actions(self, before: Daily | None = None) -> Daily:
        count = len(self.events)
        if before is not None and before.events.tolist() == self.events:
            return before
        return Daily(
            np.full(count, 20_000, np.int32),
            np.arange(count, dtype=np.int32),
            np.full(count, 2, np.int8),
            np.array(self.events, np.int64),
        )


def test_the_popular_table_is_rebuilt_only_when_counts_or_items_changed() -> None:
    holder = StateHolder(ServingState.empty(Catalogue(SCHEMA)))
    threads, counts = Threads(), Counts([1, 5, 3])
    refresher = PopularRefresher(
        database=threads,
        reader=counts,
        holder=holder,
        actions=ActionTable.from_schema(SCHEMA),
        metrics=ServingMetrics(Metrics("recommender")),
        half_life_days=30.0,
    )
    assert asyncio.run(refresher.refresh())
    assert holder.current().popular.item_index.tolist() == [1, 2, 0]
    before = holder.current().popular
    assert not asyncio.run(refresher.refresh())
    assert holder.current().popular is before
    counts.events[0] = 9
    assert asyncio.run(refresher.refresh())
    assert holder.current().popular.item_index.tolist() == [0, 1, 2]
    holder.current().catalogue.apply(rows(3))
    assert asyncio.run(refresher.refresh()), "categories came with the items"
    assert holder.current().popular.top(5, "hats").item_index.tolist() == [1]
    threads.down = True
    assert not asyncio.run(refresher.refresh())
    assert len(holder.current().popular) == 3
