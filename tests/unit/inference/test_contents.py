"""New items' content: who gets it, what is told of it, and that no change of models loses it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.inference.contents import CHUNK, ItemContents
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferRequest
from services.inference.training.content import Tokeniser
from shared.contracts.inference import NewItem, Upserted
from shared.contracts.manifest import ModelManifest
from shared.errors import ArtifactError, InferenceUnavailable
from shared.schema import Schema
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import TINY, publish

TOKENISER = Tokeniser(
    ("category=tea", "brand=acme", "weight=1", "title=ring"),
    {"brand": "string", "weight": "number"},
    {"weight": np.asarray([1.0, 2.0])},
    TINY.content_tokens,
)
NEW = TINY.vocabulary


class World:
    """An engine, and a folder of models that all have `TOKENISER`'s tokens."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root)
        self.engine = Engine(EngineOptions(threads=1))
        self.contents = ItemContents(self.engine, self.store, Schema(), switch_wait_s=0.0)

    async def switch(self, version: str, *, seed: int = 0, content: str | None = TOKENISER.dumps()) -> None:
        async with self.contents.switching():
            if self.engine.restore(version):
                return
            if not self.store.folder(ModelManifest, version).exists():
                publish(self.store, version, seed=seed, content=content)
            await asyncio.to_thread(self.engine.load, self.store.folder(ModelManifest, version))

    async def scores(self, *item_index: int) -> list[list[float]]:
        history = np.asarray([1, 2], np.int32), np.asarray([1, 2], np.int8), np.asarray([10, 20], np.int64)
        answer = await self.engine.infer(InferRequest(*history, np.asarray(item_index, np.int32), 30, 10_000_000))
        assert answer.scores is not None
        return np.round(answer.scores, 4).tolist()  # type: ignore[no-any-return]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.engine.start()
    try:
        yield made
    finally:
        made.engine.stop()


def tea(item_index: int) -> NewItem:
    return NewItem(item_index, None, ("tea",), {"brand": "acme"})


def counts(told: Upserted) -> dict[str, int]:
    return {name: getattr(told, name) for name in ("taken", "known", "no_room", "without_tokens")}


def test_a_new_item_is_scored_by_its_content_and_every_item_sent_is_counted_once(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        unknown, same = await world.scores(NEW, NEW + 9)
        assert unknown == same
        ignored = NewItem(NEW + 1, "A ring", (), {"weight": "heavy", "colour": 3})
        sent = [tea(NEW), ignored, tea(3), tea(NEW + (1 << 24)), NewItem(NEW + 2, "nothing", (), {})]
        told = await world.contents.upsert(sent)
        assert counts(told) == {"taken": 2, "known": 1, "no_room": 1, "without_tokens": 1}
        assert (told.model_version, told.vocabulary, told.ignored_properties) == ("m-1", NEW, ("weight",))
        first, second, third = await world.scores(NEW, NEW + 1, NEW + 2)
        assert first != unknown
        assert second not in (unknown, first)
        assert third == unknown

    asyncio.run(scenario())


def test_content_is_frozen_while_a_model_serves_and_the_next_model_gets_the_newest(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        await world.contents.upsert([tea(NEW)])
        before = await world.scores(NEW)
        again = NewItem(NEW, "ring", (), {})
        assert counts(await world.contents.upsert([again]))["known"] == 1
        assert await world.scores(NEW) == before
        await world.switch("m-2")
        await world.contents.upsert([replace(again, item_index=NEW + 1)])
        same, other = await world.scores(NEW, NEW + 1)
        assert same == other
        assert [same] != before

    asyncio.run(scenario())


def test_neither_a_new_model_nor_a_roll_back_loses_what_was_sent(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        await world.contents.upsert([tea(NEW)])
        await world.switch("m-2", seed=1)
        scored, unknown = await world.scores(NEW, NEW + 9)
        assert scored != unknown
        await world.contents.upsert([tea(NEW + 1)])
        await world.switch("m-1")
        first, second, unknown = await world.scores(NEW, NEW + 1, NEW + 9)
        assert first == second != unknown

    asyncio.run(scenario())


def test_more_items_than_one_chunk_all_get_their_content(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        many = 3 * CHUNK + 1
        told = await world.contents.upsert([tea(NEW + place) for place in range(many)])
        assert told.taken == many
        scores = await world.scores(*range(NEW, NEW + many), NEW + many)
        assert scores[:-1] == scores[:1] * many
        assert scores[-1] != scores[0]

    asyncio.run(scenario())


def test_while_a_model_is_being_loaded_nothing_is_given(world: World) -> None:
    """The tokens of one model mean something else to another."""

    async def scenario() -> None:
        await world.switch("m-1")
        async with world.contents.switching():
            with pytest.raises(InferenceUnavailable, match="send the items again"):
                await world.contents.upsert([tea(NEW)])
        assert (await world.contents.upsert([tea(NEW)])).taken == 1

    asyncio.run(scenario())


def test_a_failed_load_leaves_the_door_open(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        with pytest.raises(ArtifactError):
            async with world.contents.switching():
                world.engine.load(world.store.root / "nowhere")
        assert (await world.contents.upsert([tea(NEW)])).taken == 1

    asyncio.run(scenario())


def test_without_a_model_nothing_is_taken(world: World) -> None:
    with pytest.raises(InferenceUnavailable, match="no model"):
        asyncio.run(world.contents.upsert([tea(NEW)]))


@pytest.mark.parametrize("content", [None, "[]"])
def test_a_model_folder_without_tokens_says_that_content_means_nothing_to_it(world: World, content: str | None) -> None:
    async def scenario() -> None:
        await world.switch("m-1", content=content)
        assert counts(await world.contents.upsert([tea(NEW)]))["without_tokens"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("content", ["{", "{}", "7", '{"format": 1, "tokens": []}', str(list(range(99)))])
def test_a_damaged_tokens_file_is_named_and_the_model_serves_on(world: World, content: str) -> None:
    async def scenario() -> None:
        await world.switch("m-1", content=content)
        with pytest.raises(ArtifactError, match=r"content_tokens\.json"):
            await world.contents.upsert([tea(NEW)])
        assert len(await world.scores(NEW)) == 1

    asyncio.run(scenario())


def test_what_is_kept_for_later_models_is_bounded(world: World) -> None:
    world.contents = ItemContents(world.engine, world.store, Schema(), kept_items=3)

    async def scenario() -> None:
        await world.switch("m-1")
        await world.contents.upsert([tea(NEW + place) for place in range(5)])
        await world.switch("m-2")
        scores = await world.scores(*range(NEW, NEW + 5))
        assert scores[0] == scores[1] != scores[2] == scores[3] == scores[4]

    asyncio.run(scenario())


def test_a_model_beside_gets_content_too_what_came_before_it_and_what_comes_after(world: World) -> None:
    async def scenario() -> None:
        await world.switch("m-1")
        await world.contents.upsert([tea(NEW)])
        publish(world.store, "m-2", seed=1, content=TOKENISER.dumps())
        async with world.contents.switching():
            await asyncio.to_thread(world.engine.load, world.store.folder(ModelManifest, "m-2"), beside=True)
        told = await world.contents.upsert([tea(NEW + 1)])
        assert (told.model_version, told.taken) == ("m-1", 1)
        beside = world.engine.slot.resolve("m-2")
        rows = beside.items.rows_of(np.asarray([NEW, NEW + 1, NEW + 2], np.int64))
        assert [row != beside.vocabulary for row in rows] == [True, True, False]

    asyncio.run(scenario())
