"""An experiment from its first POST to shipped settings, through the whole recommender over real stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from shared.storage.database import Database
from shared.storage.tables import experiment_slates, exposures
from tests.integration.recommender.shop import ITEMS, Recommender, eventually, put_items, recommender, settings
from tests.integration.recommender.shop import promote as promote_release
from tests.integration.recommender.test_serving import store
from tests.unit.experiments.written import body, varying
from tests.unit.recommender.indexes import put_index, put_model

pytestmark = pytest.mark.integration


async def post(ours: Recommender, path: str, status: int = 200, **sent: Any) -> dict[str, Any]:
    answer = await ours.client.post(f"/v1/experiments{path}", json=sent)
    assert answer.status_code == status, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def met(ours: Recommender, user: str, **asked: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await ours.recommend(user_id=user, **asked))["experiments"]
    return found


async def until_met(ours: Recommender, user: str, variant: str | None, **asked: Any) -> None:
    async def check() -> bool:
        found = [row["variant"] for row in await met(ours, user, **asked)]
        return found == ([] if variant is None else [variant])

    await eventually(check)


def total(database: Database, table: Any) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def test_from_draft_to_shipped(database: Database, redis_url: str, tmp_path: Path) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)
    promote_release(database, store(told), "r-1")

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok", redis="ok", inference="ok", experiments="ok")
            assert (await ours.recommend(user_id="ann"))["experiments"] == []
            wrong = await post(ours, "", 422, **body(variants=varying(colour="red")))
            assert wrong["errors"][0]["pointer"] == "/variants/1/settings/colour"
            assert (await post(ours, "", 422, **body(colour=1)))["errors"][0]["pointer"] == "/colour"
            rules = varying(rules="price <= 5", ranker="retrieval")
            draft = await post(ours, "", 201, **body(variants=rules, segment_by="context.device"))
            patched = await ours.client.patch("/v1/experiments/mmr", json={"owner": "bob", "revision": 0})
            assert patched.status_code == 409
            patched = await ours.client.patch("/v1/experiments/mmr", json={"owner": "bob", "coverage": 2})
            assert patched.json()["errors"][0]["pointer"] == "/coverage"
            patched = await ours.client.patch("/v1/experiments/mmr", json={"owner": "bob"})
            assert (patched.json()["owner"], draft["owner"]) == ("bob", "ann")
            await post(ours, "/mmr:start")
            await post(ours, "/mmr:start", 409)

            async def everybody_is_enrolled() -> bool:
                return len(await met(ours, "user-0")) == 1

            await eventually(everybody_is_enrolled)
            variants = {}
            for number in range(30):
                answer = await ours.recommend(user_id=f"user-{number}", count=5, context={"device": "phone"})
                (row,) = answer["experiments"]
                variants[number] = row["variant"]
                changed = row["variant"] == "changed"
                dear = [item for item in answer["items"] if int(item["item_id"].split("-")[1]) > 5]
                assert bool(dear) is not changed
                assert any(item["scores"] for item in answer["items"]) is not changed
                if changed:
                    assert "rank" not in [stage["stage"] for stage in answer["degraded_stages"]]
            assert set(variants.values()) == {"control", "changed"}
            assert await met(ours, "nobody-signed-in", visitor_id="v1") != []
            assert (await ours.recommend(visitor_id="v1"))["experiments"] == []

            async def drained() -> bool:
                return total(database, exposures) == 31

            await eventually(drained)
            with database.read() as connection:
                kept = {row.unit: row for row in connection.execute(select(exposures))}
                slates = list(connection.execute(select(experiment_slates)))
            assert {n: kept[f"u:user-{n}"].variant for n in range(30)} == variants
            assert kept["u:user-7"].segment == "phone"
            assert all(row.ild is not None and row.novelty is not None and row.took_us > 0 for row in slates)

            await post(ours, "/mmr:ship", variant="changed")
            await until_met(ours, "user-0", None)
            visitor = await ours.recommend(visitor_id="v1", count=5)
            assert {int(item["item_id"].split("-")[1]) for item in visitor["items"]} <= {1, 2, 3, 4, 5}
            one = (await ours.client.get("/v1/experiments/mmr")).json()
            assert (one["status"], one["shipped"]) == ("stopped", "changed")
            await post(ours, "/mmr:roll_back")

            async def dear_again() -> bool:
                return any(item["scores"] for item in (await ours.recommend(visitor_id="v1"))["items"])

            await eventually(dear_again)
            trail = (await ours.client.get("/v1/experiments/mmr/audit")).json()["items"]
            assert [row["action"] for row in trail] == ["roll_back", "ship", "stop", "start", "edit", "create"]
            assert (await ours.client.get("/v1/experiments")).json()["items"][0]["key"] == "mmr"

    asyncio.run(scenario())


def test_who_signs_in_keeps_the_variant_and_an_unknown_profile_is_left_out(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(redis="ok", experiments="ok")
            await post(ours, "", 201, **body(fallback_unit="visitor"))
            await post(ours, "/mmr:start")

            async def enrolled() -> bool:
                return len((await ours.recommend(visitor_id="probe"))["experiments"]) == 1

            await eventually(enrolled)
            for number in range(12):
                visitor, user = f"web-{number}", f"user-{number}"
                (first,) = (await ours.recommend(visitor_id=visitor))["experiments"]

                async def remembered(visitor: str = visitor, user: str = user, first: dict[str, Any] = first) -> bool:
                    return bool((await ours.recommend(visitor_id=visitor, user_id=user))["experiments"] == [first])

                await eventually(remembered)
                assert (await ours.recommend(visitor_id=visitor, user_id=user))["stage_ms"]["features"] > 0
            assert (await ours.recommend(user_id="user-1", personalized=False))["experiments"] == []

    asyncio.run(scenario())


def test_a_variant_serves_its_own_model_and_index_and_shipping_it_promotes_them(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)
    promote_release(database, store(told), "r-1")

    async def scenario() -> None:
        async with recommender(told) as ours:
            await ours.until(release="ok", redis="ok", inference="ok", experiments="ok")
            put_model(store(told), "m-2")
            put_index(store(told), "i-other", items=ITEMS + 1, model_version="m-2")
            await post(ours, "", 201, **body(variants=varying(release={"model": "m-2", "index": "i-other"})))
            ours.inference.away = True
            await ours.until(True, **{"variant releases": "m-2 with i-other is open and waits"})
            local = {"host": "localhost"}
            page = await ours.client.get("/dashboard/experiments/mmr", headers=local)
            assert "m-2 with i-other is open and waits for inference" in page.text
            ours.inference.away = False
            await post(ours, "/mmr:start")
            served = {}

            async def everybody_is_enrolled() -> bool:
                return len(await met(ours, "user-0")) == 1

            await eventually(everybody_is_enrolled)
            page = await ours.client.get("/dashboard/experiments/mmr", headers=local)
            assert (page.status_code, "waits for inference" in page.text) == (200, False)
            for number in range(20):
                answer = await ours.recommend(user_id=f"user-{number}", count=5)
                (row,) = answer["experiments"]
                served[row["variant"]] = (answer["model_version"], answer["index_version"])
                assert "rank" not in [stage["stage"] for stage in answer["degraded_stages"]]
            assert served == {"control": ("m-1", "i-r-1"), "changed": ("m-2", "i-other")}
            assert {request.model_version for request in ours.inference.ranked} == {"m-1", "m-2"}
            await post(ours, "/mmr:ship", variant="changed")

            async def everybody_has(index: str) -> bool:
                return bool((await ours.recommend(user_id="bob"))["index_version"] == index)

            await eventually(lambda: everybody_has("i-other"))
            await post(ours, "/mmr:roll_back")
            await eventually(lambda: everybody_has("i-r-1"))

    asyncio.run(scenario())
