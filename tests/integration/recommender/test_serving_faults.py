"""Stores that are killed or hang while slates are asked for: every answer is in time, and names what it lacked."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from services.features.online import keys
from shared.contracts.history import pack
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import recommendations
from tests.integration.recommender.shop import (
    CLICK,
    Recommender,
    eventually,
    promote,
    put_items,
    recommender,
    settings,
)
from tests.servers import MariaDB, Process, RedisServer

pytestmark = pytest.mark.integration
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
# The longest there is, so that other processes of a busy machine cannot fail a test; virtual-time tests of the pipeline
# look at the milliseconds. What hangs here hangs for ever.
DEADLINE_MS = 1000
RECOMMENDED = {"deadline_ms": DEADLINE_MS, "count": 5}


@contextlib.contextmanager
def hanging(server: Process) -> Iterator[None]:
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)


def shop(database: Database, redis_url: str, tmp_path: Path) -> Settings:
    """Twenty items, a release with a model, and Ann, who clicked item-5 and then item-7."""
    told = settings(database, redis_url, tmp_path)
    put_items(database)
    promote(database, ArtifactStore(told.artifacts_dir()), "r-1")
    remember(redis_url, "u:ann", [5, 7])
    return told


def remember(redis_url: str, user_key: str, items: list[int]) -> None:
    now_s = int(time.time())
    rows = pack(items, [CLICK] * len(items), [now_s - 60 + n for n in range(len(items))])
    fields = {keys.REVISION: b"1", keys.ROWS: rows.tobytes(), keys.LAST_EVENT_ID: b"event-2"}
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.history_key(user_key), mapping=fields)
        client.set(keys.profile_key(user_key), b'{"properties":{},"segments":[]}')
        client.set(keys.SYNC_LEASE, b"1", ex=600)


def stages(answer: dict[str, Any]) -> set[str]:
    return {row["stage"] for row in answer["degraded_stages"]}


async def in_time(ours: Recommender, times: int = 3, **body: Any) -> dict[str, Any]:
    """The last of several answers, each complete and before its deadline."""
    answer: dict[str, Any] = {}
    for _ in range(times):
        answer = await ours.recommend(user_id="ann", **RECOMMENDED, **body)
        assert answer["took_ms"] < DEADLINE_MS, answer["stage_ms"]
        assert len(answer["items"]) == RECOMMENDED["count"]
    return answer


async def undegraded(ours: Recommender) -> bool:
    return not (await ours.recommend(user_id="ann", **RECOMMENDED))["degraded_stages"]


async def not_waited_for(ours: Recommender) -> bool:
    """A store that hangs is left alone after a few tries, but for a probe now and then."""
    answer = await ours.recommend(user_id="ann", **RECOMMENDED)
    return float(answer["stage_ms"]["features"]) < 50.0


def test_the_users_history_is_used_and_without_personalization_it_is_not_read(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = shop(database, redis_url, tmp_path)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            answer = await in_time(ours)
            assert answer["last_event_id"] == "event-2"
            assert answer["degraded_stages"] == []
            assert "behaviour" in {name for item in answer["items"] for name in item["retrieve_ids"]}
            assert len(ours.inference.ranked[-1].history) == 2
            anonymous = await in_time(ours, personalized=False)
            assert anonymous["last_event_id"] is None
            assert "behaviour" not in {name for item in anonymous["items"] for name in item["retrieve_ids"]}
            assert len(ours.inference.ranked[-1].history) == 0
            assert "features" not in anonymous["stage_ms"]

    asyncio.run(scenario())


def test_a_redis_that_hangs_and_comes_back(
    database: Database, redis_url: str, redis_process: RedisServer, tmp_path: Path
) -> None:
    told = shop(database, redis_url, tmp_path)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            first = await in_time(ours)
            with hanging(redis_process):
                assert "features.redis.history" in stages(await in_time(ours))
                await in_time(ours, cursor=first["next_cursor"])
            await eventually(lambda: undegraded(ours))

    asyncio.run(scenario())


def test_a_redis_that_is_killed_and_started_again_empty(
    database: Database, redis_url: str, redis_process: RedisServer, tmp_path: Path
) -> None:
    told = shop(database, redis_url, tmp_path)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok", redis="ok")
            redis_process.kill()
            try:
                assert "features.redis.history" in stages(await in_time(ours))
                await ours.until(redis="does not answer")
            finally:
                redis_process.start()
            remember(redis_url, "u:ann", [5, 7])
            await eventually(lambda: undegraded(ours))

    asyncio.run(scenario())


@on_mariadb
def test_a_database_that_hangs_costs_no_deadline_and_no_slate_of_the_journal(
    database: Database, redis_url: str, mariadb_server: MariaDB, tmp_path: Path
) -> None:
    told = shop(database, redis_url, tmp_path)

    async def scenario() -> str:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            with hanging(mariadb_server):
                answer = await in_time(ours)
                assert answer["degraded_stages"] == [], "Redis has all that a slate needs"
                with redis.Redis.from_url(redis_url) as client:
                    client.flushall()
                unknown = await in_time(ours)
                assert {"features.database.history", "features.database.profile"} <= stages(unknown)
                await eventually(lambda: not_waited_for(ours))
            return str(unknown["recommendation_id"])

    served = asyncio.run(scenario())
    with database.read() as connection:
        kept = connection.scalars(select(recommendations.c.recommendation_id)).all()
    waiting = list((tmp_path / "var" / "journal").rglob("*"))
    assert served in kept or waiting, "what the database did not take in time waits for the next process"


@on_mariadb
def test_with_everything_dead_popular_items_go_on_being_served(
    database: Database, redis_url: str, redis_process: RedisServer, mariadb_server: MariaDB, tmp_path: Path
) -> None:
    told = shop(database, redis_url, tmp_path)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            ours.inference.away = True
            redis_process.kill()
            mariadb_server.kill()
            try:
                answer = await in_time(ours, times=10)
                causes = {(row["stage"], row["fallback"]) for row in answer["degraded_stages"]}
                assert ("rank", "popular") in causes
                assert [item["item_id"] for item in answer["items"]] == [f"item-{n}" for n in range(1, 6)]
                ready = await ours.until(inference="is not ready", redis="does not answer", database="the database")
                assert ready["ready"]
            finally:
                redis_process.start()
                mariadb_server.start()

    asyncio.run(scenario())
