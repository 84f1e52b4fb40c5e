"""The watcher: what is promoted is served, and what cannot be is refused without harm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferRequest
from services.inference.watcher import ModelWatcher
from shared.contracts.manifest import Deployment, ModelManifest, Release
from shared.contracts.variant_release import VariantRelease
from shared.errors import DatabaseUnavailable, NotFound
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import publish
from tests.unit.recommender.indexes import put_index


@dataclass
class World:
    """`promoted`: the active model version; `up`: the database answers."""

    root: Path
    promoted: str | None = None
    up: bool = True
    now: float = 0.0
    wanted: tuple[VariantRelease, ...] = ()
    engine: Engine = field(default_factory=lambda: Engine(EngineOptions(threads=1)))

    def __post_init__(self) -> None:
        self.store = ArtifactStore(self.root)
        self.watcher = ModelWatcher(
            engine=self.engine,
            store=self.store,
            active=self._active,
            wanted=self._asked,
            refresh_s=1.0,
            clock=lambda: self.now,
        )

    async def _asked(self) -> tuple[VariantRelease, ...]:
        return self.wanted

    async def _active(self) -> Deployment | None:
        if not self.up:
            raise DatabaseUnavailable("the database does not answer")
        if self.promoted is None:
            return None
        return Deployment(version=1, release=Release(release="r", model_version=self.promoted, index_version=None))

    def look(self) -> None:
        asyncio.run(self.watcher.look())

    def promote(self, version: str) -> None:
        self.promoted = version
        self.look()

    @property
    def serving(self) -> str | None:
        return None if self.engine.slot.active is None else self.engine.slot.active.version


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.engine.start()
    try:
        yield made
    finally:
        made.engine.stop()


def test_before_the_first_promotion_it_says_so(world: World) -> None:
    world.look()
    assert world.serving is None
    assert world.watcher.model == "no model is promoted yet"
    assert world.watcher.database == "ok"


def test_what_is_promoted_is_served_and_the_next_one_takes_over(world: World) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2", seed=1)
    world.promote("m-1")
    assert (world.serving, world.watcher.model) == ("m-1", "ok")
    world.promote("m-2")
    assert world.engine.slot.versions() == ("m-2", "m-1")
    assert world.engine.counters.swaps == 2


def test_while_the_database_is_down_the_present_model_goes_on(world: World) -> None:
    publish(world.store, "m-1")
    world.promote("m-1")
    world.up = False
    world.look()
    assert world.serving == "m-1"
    assert world.watcher.database == "the database does not answer"
    world.up = True
    world.look()
    assert world.watcher.database == "ok"


def flip(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def missing(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def renamed(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"m-2"', '"m-3"'), "utf-8")


def no_folder(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.mkdir()


@pytest.mark.parametrize("harm", [flip, missing, renamed, no_folder])
def test_a_damaged_folder_is_refused_and_the_good_model_serves_on(world: World, harm: Callable[[Path], None]) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2")
    world.promote("m-1")
    harm(world.store.folder(ModelManifest, "m-2"))
    world.promote("m-2")
    assert world.serving == "m-1"
    assert world.watcher.model.startswith("m-2 was refused: ")


def test_a_model_without_finite_numbers_is_refused(world: World) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2", broken=True)
    world.promote("m-1")
    world.promote("m-2")
    assert world.serving == "m-1"
    assert "finite" in world.watcher.model


def test_a_refused_model_is_tried_again_later_for_somebody_may_have_restored_it(world: World) -> None:
    publish(world.store, "m-1")
    folder = world.store.folder(ModelManifest, "m-1")
    missing(folder)
    world.promote("m-1")
    folder.with_name("elsewhere").rename(folder)
    world.look()
    assert world.serving is None  # not tried at every look: reading and checking a large model is work
    world.now += 31
    world.look()
    assert world.serving == "m-1"


def test_another_promotion_does_not_wait_for_the_refused_one(world: World) -> None:
    publish(world.store, "m-1")
    world.promote("m-0")
    world.promote("m-1")
    assert (world.serving, world.watcher.model) == ("m-1", "ok")


def test_rolling_back_uses_the_model_that_is_still_warm(world: World) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2")
    world.promote("m-1")
    world.promote("m-2")
    missing(world.store.folder(ModelManifest, "m-1"))
    world.promote("m-1")
    assert (world.serving, world.watcher.model) == ("m-1", "ok")


def ask(world: World, version: str) -> list[float]:
    """Scores of one user's candidates by that model."""
    history = np.asarray([1, 2], np.int32), np.asarray([1, 2], np.int8), np.asarray([10, 20], np.int64)
    request = InferRequest(*history, np.asarray([3, 4], np.int32), 30, 10_000_000, model_version=version)
    answer = asyncio.run(world.engine.infer(request))
    assert answer.scores is not None
    return answer.scores.ravel().tolist()


def test_a_variants_model_is_served_beside_by_its_version_for_as_long_as_it_is_asked_for(world: World) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2", seed=1)
    put_index(world.store, "i-2", model_version="m-2")
    put_index(world.store, "i-behaviour")
    world.promote("m-1")
    alone = ask(world, "")
    world.wanted = (VariantRelease(None, "i-2"), VariantRelease(None, "i-behaviour"))
    world.look()
    assert world.engine.slot.versions() == ("m-1", "m-2"), "the index says which model goes with it"
    assert (world.serving, world.watcher.beside) == ("m-1", "ok")
    assert ask(world, "m-1") == ask(world, "") == alone
    assert ask(world, "m-2") != alone
    assert asyncio.run(world.engine.check_integrity()) == []
    world.wanted = ()
    world.look()
    with pytest.raises(NotFound):
        ask(world, "m-2")


def test_a_variants_model_that_cannot_be_loaded_harms_nobody_and_once_it_is_there_it_can_be_promoted(
    world: World,
) -> None:
    publish(world.store, "m-1")
    publish(world.store, "m-2", seed=1)
    folder = world.store.folder(ModelManifest, "m-2")
    missing(folder)
    world.wanted = (VariantRelease("m-2", None), VariantRelease("m-1", None))
    world.promote("m-1")
    assert (world.serving, world.watcher.model) == ("m-1", "ok")
    assert "m-2" in world.watcher.beside
    folder.with_name("elsewhere").rename(folder)
    world.look()
    assert world.engine.slot.versions() == ("m-1",), "not at every look: hashing a large model is work"
    world.now += 31
    world.look()
    assert (world.engine.slot.versions(), world.watcher.beside) == (("m-1", "m-2"), "ok")
    for version in ("m-1", "m-2"):
        world.store.folder(ModelManifest, version).rename(world.root / version)
    world.promote("m-2")
    assert (world.serving, world.watcher.model, world.watcher.beside) == ("m-2", "ok", "ok"), "it was warm"
    assert [one.version for one in world.engine.slot.serving()] == ["m-2", "m-1"], "and the one before stays beside"
    assert ask(world, "m-1") != ask(world, "m-2")
