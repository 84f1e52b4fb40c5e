"""A shop in real stores, and an inference service that answers as told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from services.recommender.app import build
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.contracts.manifest import ModelManifest, Release
from shared.errors import InferenceUnavailable
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import counters, item_daily, items
from tests.asgi import running
from tests.unit.recommender.indexes import DIM, put_index, put_model

ITEMS = 20
CLICK = 2
READY_S = 20.0


@dataclass
class FakeInference:
    """Scores rise with item_index. `away`: the process was killed; `hang`: it does not answer."""

    away: bool = False
    hang: bool = False
    ranked: list[RankRequest] = field(default_factory=list)
    closed: bool = False

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        await self._state()
        return EncodeResult(np.ones(DIM, np.float32), request.model_version or "m-1")

    async def rank(self, request: RankRequest) -> RankResult:
        await self._state()
        self.ranked.append(request)
        score = ((request.candidate + 1) / 1000).astype(np.float32)
        return RankResult(score[:, None], np.ones(len(score), np.bool_), request.model_version or "m-1")

    async def ready(self, model_version: str) -> bool:
        return not self.away

    async def close(self) -> None:
        self.closed = True

    async def _state(self) -> None:
        if self.away:
            raise InferenceUnavailable("the inference service does not answer")
        if self.hang:
            await asyncio.Event().wait()


def settings(database: Database, redis_url: str, state: Path, **recommender: Any) -> Settings:
    return Settings.model_validate(
        {
            "home": state,
            "state_dir": state / "var",
            "database": {"url": database.url.render_as_string(hide_password=False)},
            "redis": {"url": redis_url},
            "recommender": {"refresh_s": 0.05, **recommender},
            "data": {"scenes": {"home": {"weights": {"click": 1.0}}}},
        }
    )


def put_items(database: Database, count: int = ITEMS, *, first: int = 0, revision: int = 1) -> None:
    """item-0 is the most popular. item_index begins where the index folders of the tests do."""
    now_us = time.time_ns() // 1000
    rows = [
        {
            "item_index": n,
            "item_id": f"item-{n}",
            "known": True,
            "title": f"Title {n}",
            "categories": ["shoes"],
            "is_hidden": False,
            "price": float(n),
            "created_at_us": now_us - 1_000_000,
            "properties": {},
            "embeddings": {},
            "revision": revision,
            "updated_at_us": now_us,
        }
        for n in range(first + 1, first + count + 1)
    ]
    daily = [
        {"occurred_day": 20_000, "item_index": n, "action": CLICK, "events": 100 - n}
        for n in range(first + 1, first + count + 1)
    ]
    with database.write() as connection:
        connection.execute(items.insert(), rows)
        connection.execute(item_daily.insert(), daily)
        connection.execute(counters.delete().where(counters.c.name == "catalogue"))
        connection.execute(counters.insert().values(name="catalogue", value=revision))


def promote(database: Database, store: ArtifactStore, release: str, *, model: str | None = "m-1") -> None:
    index = f"i-{release}"
    put_index(store, index, items=ITEMS + 1, model_version=model)
    if model is not None and model not in store.versions(ModelManifest):
        put_model(store, model)
    named = Release(release=release, model_version=model, index_version=index)
    with database.write() as connection:
        deployments.promote(connection, named, settings={}, actor="test")


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Until `check` holds; fails after READY_S."""
    async with asyncio.timeout(READY_S):
        while True:
            if await check():
                return
            await asyncio.sleep(0.01)


@dataclass
class Recommender:
    client: httpx.AsyncClient
    inference: FakeInference

    async def recommend(self, **body: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/recommend", json={"visitor_id": "v1", **body})
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    async def until(self, ready: bool = True, **dependencies: str) -> dict[str, Any]:
        """Waits for /ready to say so; `dependencies` must begin with the given words."""
        async with asyncio.timeout(READY_S):
            while True:
                state: dict[str, Any] = (await self.client.get("/ready")).json()
                told = state["dependencies"]
                if state["ready"] == ready and all(
                    told.get(name, "").startswith(text) for name, text in dependencies.items()
                ):
                    return state
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def recommender(settings: Settings) -> AsyncIterator[Recommender]:
    inference = FakeInference()
    app = build(Loaded(settings, {}, None), inference=inference)
    async with running(app) as client:
        yield Recommender(client, inference)
    assert inference.closed
