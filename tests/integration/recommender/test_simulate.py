"""Simulated users in a real shop: the recommender and the features service, both over real stores in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from services.cli.simulate.driver import NO_VARIANT, Traffic, drive
from services.cli.simulate.shop import Shop
from services.features import app as features
from services.recommender.experiments.simulator.clicks import ClickModel
from services.recommender.experiments.simulator.users import arrivals, user_ids
from shared.actions import ActionTable
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import events, recommendations
from tests.asgi import running
from tests.integration.recommender.shop import ITEMS, eventually, promote, put_items, recommender, settings

pytestmark = pytest.mark.integration
REQUESTS, USERS, SEED = 60, 12, 5


class OneUrl(httpx.AsyncBaseTransport):
    """Events to the one service, all else to the other, as the recommender's forwarding does."""

    def __init__(self, writes: httpx.AsyncClient, reads: httpx.AsyncClient) -> None:
        self._writes, self._reads = writes, reads

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        client = self._writes if request.url.path == "/v1/events" else self._reads
        answer = await client.request(
            request.method,
            request.url.path,
            content=await request.aread(),
            headers={"content-type": "application/json"},
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content, request=request)


@contextlib.asynccontextmanager
async def shop(told: Settings) -> AsyncIterator[Shop]:
    async with recommender(told) as ours, running(features.build(Loaded(told, {}, None))) as writes:
        await ours.until(release="ok", redis="ok", inference="ok")

        async def whole() -> bool:
            return len((await ours.recommend(count=ITEMS))["items"]) == ITEMS

        await eventually(whole)
        async with httpx.AsyncClient(transport=OneUrl(writes, ours.client), base_url="http://shop") as http:
            yield Shop(http, scene="home", count=5)


def test_slates_impressions_and_clicks_of_simulated_users_are_stored_and_marked(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    told = settings(database, redis_url, tmp_path, deadline_ms=1000)
    put_items(database)
    promote(database, ArtifactStore(told.artifacts_dir()), "r-1")
    model, codes = ClickModel(seed=SEED, base=0.0), ActionTable.from_schema(told.data).by_name

    async def scenario() -> Traffic:
        async with shop(told) as ours:
            planned = arrivals(user_ids(USERS, SEED), REQUESTS, 0, SEED)
            return await drive(ours, model, planned, experiment=None, concurrency=4)

    traffic = asyncio.run(scenario())
    tally = traffic.tallies[NO_VARIANT]
    assert (traffic.requests, traffic.refused, tally.slates, tally.impressions) == (REQUESTS, 0, REQUESTS, 5 * REQUESTS)
    with database.read() as connection:
        stored = connection.execute(select(events)).all()
        served = connection.execute(select(recommendations)).all()
    slates: dict[str, Any] = {row.recommendation_id: row.request for row in served}
    by_action = {name: [row for row in stored if row.action == codes[name].code] for name in ("impression", "click")}
    assert len(by_action["impression"]) == REQUESTS
    assert len(by_action["click"]) == tally.clicks > 0
    assert all(row.properties == {"simulated": True} for row in stored)
    assert all(len(row.impression) == 5 for row in by_action["impression"])
    for row in stored:
        assert row.user_key.startswith(f"u:sim-{SEED}-")
        assert slates[row.recommendation_id]["body"]["context"] == {"silkrec_simulated": True}
