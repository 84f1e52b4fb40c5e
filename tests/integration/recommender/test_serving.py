"""The whole recommender over real stores, with the inference service in the test's hands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import items, recommendations
from tests.integration.recommender.shop import Recommender, eventually, promote, put_items, recommender, settings

pytestmark = pytest.mark.integration
NO_REDIS = "unix:///nonexistent/redis.sock"
NO_DATABASE = "mysql+pymysql://nobody@127.0.0.1:1/none"


def store(told: Settings) -> ArtifactStore:
    return ArtifactStore(told.artifacts_dir())


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_an_empty_installation_is_ready_and_says_that_there_is_nothing_yet(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with recommender(settings(database, redis_url, tmp_path)) as ours:
            await ours.until(release="none promoted yet")
            answer = await ours.client.post("/v1/recommend", json={"visitor_id": "v1"})
            assert answer.json()["code"] == "nothing_to_serve"
            put_items(database)

            async def served() -> bool:
                return (await ours.client.post("/v1/recommend", json={"visitor_id": "v1"})).status_code == 200

            await eventually(served)

    asyncio.run(scenario())


def test_a_slate_is_ranked_by_the_model_and_kept(database: Database, redis_url: str, tmp_path: Path) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)
    promote(database, store(told), "r-1")

    async def scenario() -> str:
        async with recommender(told) as ours:
            await ours.until(release="ok", redis="ok", inference="ok")
            answer = await ours.recommend(count=5, return_properties=["title"])
            assert answer["release"] == "r-1"
            assert answer["model_version"] == "m-1"
            assert answer["index_version"] == "i-r-1"
            assert len(answer["items"]) == 5
            assert "click" in answer["items"][0]["scores"]
            assert answer["items"][0]["properties"]["title"].startswith("Title ")
            served = await ours.client.get(f"/v1/recommendations/{answer['recommendation_id']}")
            assert [item["item_id"] for item in served.json()["items"]] == ids(answer)
            return str(answer["recommendation_id"])

    recommendation_id = asyncio.run(scenario())
    with database.read() as connection:
        assert connection.scalar(select(recommendations.c.recommendation_id)) == recommendation_id


def test_a_promotion_and_a_roll_back_are_seen_without_a_restart(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)
    promote(database, store(told), "r-1")

    async def served(ours: Recommender, release: str) -> None:
        async def there() -> bool:
            return bool((await ours.recommend(validate_only=True))["release"] == release)

        await eventually(there)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            promote(database, store(told), "r-2")
            await served(ours, "r-2")
            with database.write() as connection:
                deployments.roll_back(connection, actor="test")
            await served(ours, "r-1")

    asyncio.run(scenario())


def test_a_hidden_item_leaves_slates_within_a_refresh(database: Database, redis_url: str, tmp_path: Path) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until()
            assert "item-1" in ids(await ours.recommend(count=20))
            with database.write() as connection:
                connection.execute(update(items).where(items.c.item_index == 1).values(is_hidden=True, revision=2))

            async def gone() -> bool:
                return "item-1" not in ids(await ours.recommend(count=20))

            await eventually(gone)

    asyncio.run(scenario())


def test_with_inference_dead_or_hanging_slates_go_on_and_name_it(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=300)
    put_items(database)
    promote(database, store(told), "r-1")

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok")
            ours.inference.away = True
            answer = await ours.recommend()
            assert len(answer["items"]) == 10
            assert "inference_unavailable" in {row["cause"] for row in answer["degraded_stages"]}
            ours.inference.away, ours.inference.hang = False, True
            started = time.monotonic()
            answer = await ours.recommend()
            assert time.monotonic() - started < 2.0
            assert len(answer["items"]) == 10
            assert answer["degraded_stages"]
            ours.inference.hang = False

            async def ranked_again() -> bool:
                return bool((await ours.recommend())["items"][0]["scores"])

            await eventually(ranked_again)

    asyncio.run(scenario())


def test_it_starts_and_serves_without_redis(database: Database, tmp_path: Path) -> None:
    told = settings(database, NO_REDIS, tmp_path, deadline_ms=1000)
    put_items(database)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(redis="does not answer")
            answer = await ours.recommend()
            assert len(answer["items"]) == 10
            assert "redis" in str(answer["degraded_stages"])

    asyncio.run(scenario())


def test_it_starts_without_its_database_and_is_not_ready_yet(redis_url: str, tmp_path: Path) -> None:
    told = Settings.model_validate(
        {
            "home": tmp_path,
            "state_dir": tmp_path / "var",
            "database": {"url": NO_DATABASE, "connect_timeout_s": 0.2},
            "redis": {"url": redis_url},
            "recommender": {"refresh_s": 0.05},
        }
    )

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(ready=False, catalogue="the database", database="the database", popular="the database")
            answer = await ours.client.post("/v1/recommend", json={"visitor_id": "v1"})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert (await ours.client.get("/health")).status_code == 200

    asyncio.run(scenario())


def test_every_answer_of_a_crowd_is_in_the_database_in_the_end(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)

    async def scenario() -> set[str]:
        async with recommender(told) as ours:
            await ours.until()
            answers = await asyncio.gather(*(ours.recommend(user_id=f"u{n}", visitor_id=None) for n in range(40)))
            return {answer["recommendation_id"] for answer in answers}

    served = asyncio.run(scenario())
    with database.read() as connection:
        kept = set(connection.scalars(select(recommendations.c.recommendation_id)))
        assert served <= kept
        assert connection.scalar(select(func.count()).select_from(recommendations)) == len(kept)
