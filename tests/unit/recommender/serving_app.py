"""The recommender's application around fakes: a pipeline that does as told, a Redis in a dictionary, a clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.recommender.app import assemble
from services.recommender.catalogue import Catalogue
from services.recommender.domain import Degradation, ExplorationRecord, Query, Removal, Rung, Slate, SlateItems
from services.recommender.fresh import FreshTable
from services.recommender.journal import Journal
from services.recommender.metrics import JournalMetrics, SlateMetrics
from services.recommender.popular import PopularTable
from services.recommender.routes.desk import Desk
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving import ServingState, StateHolder
from services.recommender.serving.enroller import NO_ENROLMENT, Enroller, Enrolment
from services.recommender.serving.frozen import FrozenSlates
from services.recommender.serving.readiness import ReadinessBoard
from services.recommender.serving.slates import SlateServer
from shared.contracts.history import Int32
from shared.contracts.manifest import Release
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.schema import ItemField, Scene, Schema
from shared.settings.roots import AuthSettings, DatabaseSettings, Settings
from shared.storage.database import Database
from tests.asgi import running
from tests.unit.web.example import NO_KEYS, SECRET, FakeKeys

SCHEMA = Schema(
    scenes={
        "home": Scene(weights={"click": 1.0, "purchase": 4.0}),
        "cheap": Scene(weights={"click": 1.0}, filter="price < 50"),
    },
    item_fields={"brand": ItemField(type="string")},
)
ITEMS = 60


@dataclass(frozen=True)
class Row:
    item_index: int
    item_id: str
    price: float | None = None
    known: bool = True
    item_type: str | None = "shoe"
    title: str | None = None
    categories: tuple[str, ...] = ()
    is_hidden: bool = False
    available_from_us: int | None = None
    available_until_us: int | None = None
    currency: str | None = "EUR"
    created_at_us: int = 1_600_000_000_000_000
    properties: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1
    deleted: bool = False


def rows(count: int = ITEMS) -> list[Row]:
    """item-0 … ; prices rise by one; even ones are shoes, odd ones hats."""
    return [
        Row(n, f"item-{n}", float(n), title=f"Title {n}", categories=("shoes" if n % 2 == 0 else "hats",))
        for n in range(count)
    ]


def popular(catalogue: Catalogue, count: int = ITEMS) -> PopularTable:
    """item-0 is the most popular."""

    @dataclass
    class Daily:
        occurred_day: Any
        item_index: Any
        action: Any
        events: Any

    from shared.actions import ActionTable

    order = np.arange(count)
    daily = Daily(np.full(count, 20_000), order, np.full(count, 2), 1000 - order)
    return PopularTable.from_daily(daily, ActionTable.from_schema(SCHEMA), 30.0, catalogue)


def state(count: int = ITEMS) -> ServingState:
    catalogue = Catalogue(SCHEMA)
    catalogue.apply(rows(count))
    release = Release(release="r-1", model_version=None, index_version=None)
    return ServingState(release, None, None, catalogue, popular(catalogue, count), FreshTable.from_catalogue(catalogue))


def slate_of(item_index: Int32, **changes: Any) -> Slate:
    count = len(item_index)
    items = SlateItems(
        item_index=item_index.astype(np.int32),
        score=np.linspace(2, 1, count, dtype=np.float32),
        scores=np.full((count, 2), 0.25, np.float32),
        source_bits=np.full(count, 2, np.int64),
        propensity=np.ones(count),
        reasons=(("because_you_saw",),) * count,
        actions=("click", "purchase"),
        sources=("popular", "user_vector"),
    )
    values: dict[str, Any] = {
        "rung": Rung.MODEL,
        "stage_ms": {"retrieval": 1.5, "rank": 4.25},
        "degraded": (),
        "filtered": {},
        "release": "r-1",
        "model_version": "m-1",
        "index_version": "i-1",
        "last_event_id": "event-9",
        "candidates": count,
    }
    return Slate(items=items, **(values | changes))


class FakePipeline:
    """Ranks the highest item_index first; `script` may stand in for one call or all."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.script: Callable[[Query], Slate] | None = None
        self.hang: asyncio.Event | None = None
        self.error: Exception | None = None

    async def run(self, query: Query) -> Slate:
        self.queries.append(query)
        if self.hang is not None:
            await self.hang.wait()
        if self.error is not None:
            raise self.error
        if self.script is not None:
            return self.script(query)
        pool = np.arange(ITEMS - 1, -1, -1, dtype=np.int32) if query.input_list is None else query.input_list
        pool = pool[~np.isin(pool, query.exclude)]
        return slate_of(pool[: query.count])


EXPLAINED: dict[str, Any] = {
    "removed": (Removal(7, "filter", "price < 5"), Removal(8, "seen", "hide_seen")),
    "filtered": {("filter", "price < 5"): 1, ("seen", "hide_seen"): 1},
    "degraded": (Degradation("rank", "deadline", "partial"),),
    "exploration": ExplorationRecord(0.1, 77, np.array([1, 2, 3], np.int32)),
}


class FakeRedis:
    """Hashes and their expiry, and a switch to be away."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, bytes]] = {}
        self.expiry: dict[str, int] = {}
        self.away = False
        self.hangs = False

    async def hget(self, key: str, name: str) -> bytes | None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise RedisConnectionError("away")
        return self.values.get(key, {}).get(name)

    async def set(self, key: str, value: bytes, *, ex: int) -> None:
        """A string is kept as the one field of its key."""
        self.values[key] = {"": value}
        self.expiry[key] = ex

    async def eval(self, script: str, _keys: int, key: str, name: str, value: bytes, seconds: int) -> int:
        assert "HSET" in script
        assert "EXPIRE" in script
        if self.away:
            raise RedisConnectionError("away")
        self.values.setdefault(key, {})[name] = value
        self.expiry[key] = seconds
        return 1


class Switched:
    """An enroller that a test puts in once it has a world."""

    def __init__(self) -> None:
        self.inner: Enroller | None = None

    async def enrol(self, query: Query, **asked: Any) -> tuple[Query, Enrolment]:
        return (query, NO_ENROLMENT) if self.inner is None else await self.inner.enrol(query, **asked)


@dataclass
class Clock:
    now_s: float


@dataclass
class World:
    """What a test may look into and change."""

    client: httpx.AsyncClient
    pipeline: FakePipeline
    redis: FakeRedis
    holder: StateHolder
    journal: Journal
    metrics: Metrics
    tasks: TaskOwner
    clock: Clock
    experiments: Switched

    async def recommend(self, path: str = "/v1/recommend", **body: Any) -> dict[str, Any]:
        answer = await self.client.post(path, json={"visitor_id": "v1", **body})
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    async def refused(self, path: str = "/v1/recommend", **body: Any) -> dict[str, Any]:
        answer = await self.client.post(path, json={"visitor_id": "v1", **body})
        assert answer.headers["content-type"] == "application/problem+json"
        content: dict[str, Any] = answer.json()
        return content

    async def written_behind(self) -> None:
        """Cache writes that were spawned have ended."""
        while self.tasks._spawned:
            await asyncio.wait(set(self.tasks._spawned))


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path, *, keys: FakeKeys = NO_KEYS, serving: ServingState | None = None
) -> AsyncIterator[World]:
    settings = Settings(home=tmp_path, auth=AuthSettings(user_token_secret=SecretStr(SECRET)), data=SCHEMA)
    metrics, board = Metrics("recommender"), ReadinessBoard()
    holder = StateHolder(serving if serving is not None else state())
    pipeline, redis = FakePipeline(), FakeRedis()
    database = Database(f"sqlite:///{tmp_path / 'unused.db'}", DatabaseSettings())
    journal = Journal(
        state=tmp_path, process="test", database=database, metrics=JournalMetrics(metrics), max_slates=1000
    )
    tasks = TaskOwner(metrics=metrics)
    server = SlateServer(pipeline, holder, SlateMetrics(metrics))
    clock = Clock(1_700_000_000.0)
    frozen = FrozenSlates(cast("Redis", redis), cast("Redis", redis), now_s=lambda: clock.now_s)
    experiments = Switched()
    enroller = cast("Enroller", experiments)
    desk = Desk(settings.recommender, QueryBuilder(SCHEMA), holder, server, frozen, journal, tasks, enroller)
    board.pin(loaded=lambda: True, dependencies=lambda: {"redis": "down"})
    board.warm()

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[Mapping[str, Any]]:
        yield {"settings": settings, "keys": keys, "desk": desk}
        await server.close()
        await tasks.close(drain_s=1.0)
        await journal.close(drain_s=0.0)
        database.close()

    app = assemble(settings, metrics=metrics, board=board, lifespan=lifespan)
    async with running(app) as client:
        yield World(client, pipeline, redis, holder, journal, metrics, tasks, clock, experiments)
