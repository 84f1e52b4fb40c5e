"""Engines are told of new items once, and of all of them again when they forgot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.recommender.serving.new_items import PROBE_S, NewItems
from shared.contracts.inference import UPSERT_MOST, NewItem, Upserted
from shared.errors import InferenceUnavailable

VOCABULARY = 10


@dataclass(frozen=True)
class Row:
    """A catalogue row; of its columns only those that content is made of differ."""

    item_index: int
    title: str | None = "ring"
    properties: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True
    deleted: bool = False
    categories: tuple[str, ...] = ("tea",)
    item_id: str = ""
    item_type: str | None = None
    is_hidden: bool = False
    available_from_us: int | None = None
    available_until_us: int | None = None
    price: float | None = None
    currency: str | None = None
    created_at_us: int | None = None
    revision: int = 0


@dataclass
class Process:
    """One engine. `instance` rises with every restart; `calls` are the item_index of each call."""

    instance: int = 1
    model: str = "m-1"
    up: bool = True
    calls: list[list[int]] = field(default_factory=list)
    titles: dict[int, str | None] = field(default_factory=dict)
    properties: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def told(self) -> list[int]:
        return [item_index for call in self.calls for item_index in call]


@dataclass
class Engines:
    processes: dict[str, Process]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.processes)

    async def upsert_items(self, target: str, items: Sequence[NewItem]) -> Upserted:
        process = self.processes[target]
        if not process.up:
            raise InferenceUnavailable("nobody listens")
        process.calls.append([item.item_index for item in items])
        process.titles.update((item.item_index, item.title) for item in items)
        process.properties.update((item.item_index, item.properties) for item in items)
        return Upserted(process.model, VOCABULARY, str(process.instance))


class World:
    def __init__(self, *targets: str, kept: int = 100) -> None:
        self.now = 0.0
        self.processes = {target: Process() for target in targets}
        self.items = NewItems(Engines(self.processes), ["brand"], refresh_s=1.0, kept=kept, clock=lambda: self.now)

    def tell(self) -> None:
        asyncio.run(self.items.tell())

    def of(self, target: str = "a") -> Process:
        return self.processes[target]


def test_every_engine_is_told_of_the_items_that_its_model_lacks_and_only_once() -> None:
    world = World("a", "b")
    world.items.heard([Row(3), Row(11, properties={"brand": "acme", "shelf": 4}), Row(12, title=None)])
    world.tell()
    world.tell()
    for process in world.processes.values():
        assert process.told == [11, 12]
        assert process.titles == {11: "ring", 12: None}
        assert process.properties == {11: {"brand": "acme"}, 12: {}}
    world.items.heard([Row(12, title="box"), Row(13)])
    world.tell()
    assert world.of().told == [11, 12, 12, 13]
    assert world.of().titles[12] == "box"


def test_items_without_content_are_not_told() -> None:
    world = World("a")
    world.items.heard([Row(11), Row(12, known=False), Row(13, deleted=True)])
    world.items.heard([Row(11, deleted=True)])
    world.tell()
    assert world.of().told == []


def test_an_engine_that_restarted_is_told_everything_again() -> None:
    world = World("a", "b")
    world.items.heard([Row(11), Row(12)])
    world.tell()
    world.of("b").instance += 1
    world.tell()
    assert world.of("b").told == [11, 12], "noticed at the next probe"
    world.now += PROBE_S
    world.tell()
    assert world.of("b").told == [11, 12, 11, 12]
    assert world.of("a").told == [11, 12]


def test_an_engine_with_another_model_is_told_everything_again() -> None:
    world = World("a")
    world.items.heard([Row(11)])
    world.tell()
    world.of().model = "m-2"
    world.items.heard([Row(12)])
    world.tell()
    assert world.of().told == [11, 11, 12]


def test_an_engine_that_is_down_is_told_when_it_is_back_and_keeps_nobody_waiting() -> None:
    world = World("a", "b")
    world.of("b").up = False
    world.items.heard([Row(11)])
    world.tell()
    assert (world.of("a").told, world.of("b").told) == ([11], [])
    world.of("b").up = True
    world.tell()
    assert world.of("b").told == [11]


def test_many_items_go_in_calls_that_the_door_takes() -> None:
    world = World("a", kept=5000)
    heavy = {"brand": "x" * 60_000}
    world.items.heard([Row(place) for place in range(10, 10 + UPSERT_MOST + 1)])
    world.items.heard([Row(place, properties=heavy) for place in range(2000, 2040)])
    world.tell()
    sizes = [len(call) for call in world.of().calls]
    assert sum(sizes) == UPSERT_MOST + 41
    assert max(sizes) == UPSERT_MOST
    assert all(sum(place >= 2000 for place in call) <= 20 for call in world.of().calls)


def test_only_the_newest_items_are_kept() -> None:
    world = World("a", kept=3)
    for start in (10, 20, 30):
        world.items.heard([Row(place) for place in range(start, start + 3)])
    world.tell()
    assert world.of().told == [30, 31, 32]
