"""An engine that nobody tells of deletions finds them in the database, once each time and once more at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.inference.forgetting import OVERLAP_US, Departed, Forgetting
from shared.errors import DatabaseUnavailable

BEGIN_US = 1_000_000_000_000
SECOND_US = 1_000_000


@dataclass
class World:
    now_us: int = BEGIN_US
    up: bool = True
    deleted: dict[str, int] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    rows: int = 0
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.following = Forgetting(self, self._read, self._count, refresh_s=1.0, clock_us=lambda: self.now_us)

    async def forget(self, user_key: str) -> int:
        self.forgotten.append(user_key)
        return 3

    def _count(self, rows: int) -> None:
        self.rows += rows

    async def _read(self, since_us: int) -> Sequence[Departed]:
        if not self.up:
            raise DatabaseUnavailable("away")
        self.reads.append(since_us)
        return [pair for pair in self.deleted.items() if pair[1] > since_us]

    def after(self, seconds: float) -> list[str]:
        """Who was forgotten by a look so much later."""
        self.now_us += round(seconds * SECOND_US)
        self.forgotten.clear()
        asyncio.run(self.following.look())
        return list(self.forgotten)


def test_a_deleted_user_is_forgotten_at_the_next_look_and_once_more_when_no_request_can_be_under_way() -> None:
    world = World()
    world.deleted["u:1"] = world.now_us
    assert world.after(1) == ["u:1"]
    assert world.rows == 3
    assert world.after(1) == []
    assert world.after(OVERLAP_US / SECOND_US) == ["u:1"]
    assert world.after(1) == []
    assert world.after(1000) == []


def test_a_user_who_came_back_and_left_again_is_forgotten_again() -> None:
    world = World()
    world.deleted["u:1"] = world.now_us
    assert world.after(1) == ["u:1"]
    world.deleted["u:1"] = world.now_us
    assert world.after(1) == ["u:1"]


def test_a_commit_that_comes_late_is_found() -> None:
    world = World()
    assert world.after(10) == []
    world.deleted["u:late"] = world.now_us - 5 * SECOND_US
    assert world.after(1) == ["u:late"]


def test_an_outage_of_the_database_hides_no_deletion() -> None:
    world = World()
    world.after(1)
    world.up = False
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            world.after(OVERLAP_US / SECOND_US)
    world.deleted["u:meanwhile"] = BEGIN_US + 2 * SECOND_US
    world.up = True
    assert world.after(1) == ["u:meanwhile"]
    assert world.after(OVERLAP_US / SECOND_US) == ["u:meanwhile"]


def test_what_was_deleted_long_before_the_engine_started_is_no_work() -> None:
    world = World()
    world.deleted["u:old"] = BEGIN_US - OVERLAP_US - 1
    assert world.after(1) == []
