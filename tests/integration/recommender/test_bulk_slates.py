"""Online equals batch: slates of a job are those of requests at the same release and time, over a real engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import redis
from sqlalchemy import insert

from services.features.online import keys
from services.features.reader import FeatureReader
from services.recommender.domain import Query, Slate, no_items
from services.recommender.jobs.bulk.maker import BulkSlates
from services.recommender.jobs.bulk.wiring import opened as bulk_opened
from services.recommender.jobs.work import SlateAsk, SlateSpec, UserSlate
from services.recommender.retrieval.build import IndexBuilder, Model
from services.recommender.retrieval.stock import read_stock
from services.recommender.routes.desk import Desk
from services.recommender.serving.readiness import ReadinessBoard
from services.recommender.wiring import opened as recommender_opened
from shared.actions import ActionTable
from shared.contracts.history import pack
from shared.contracts.manifest import ModelManifest, Release
from shared.errors import FilterInvalid, InferenceUnavailable, NotFound
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded, load_settings
from shared.storage import deployments, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import counters, events, item_daily, items, user_state
from tests.inference_models import TINY
from tests.inference_process import InferenceProcess, eventually, inference_process

pytestmark = pytest.mark.integration
ITEMS, USERS, CHECKED, AT_ONCE = 200, 560, 500, 4
DAY_US = 86_400_000_000
MODEL = replace(TINY, vocabulary=ITEMS + 1, max_history=30)
SCENES = {
    "home": {"weights": {"action1": 1.0, "action2": 0.5}},
    "shelf": {"weights": {"action2": 1.0}, "filter": "price < 60", "diversity": 0.3, "hide_seen": False},
}
TYPES = {"action1": {"code": 1}, "action2": {"code": 2}}


@dataclass
class Shop:
    loaded: Loaded
    engine: InferenceProcess
    now_s: int
    """Of every slate: both ways must mean the same moment."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, redis_process: Any) -> Iterator[Shop]:
    """560 users with 0 to 40 events each. Redis holds two thirds of the histories; the others are in the database."""
    state, now_s = tmp_path_factory.mktemp("bulk") / "var", int(time.time())
    with inference_process(state, config=MODEL) as engine:
        told = {
            "state_dir": state,
            "redis.url": redis_process.url,
            "redis.read_timeout_ms": 2000,
            "recommender.candidates": 60,
            "recommender.per_source": 30,
            "recommender.deadline_ms": 1000,
            "recommender.refresh_s": 0.1,
            "data": {"scenes": SCENES, "event_types": TYPES},
        }
        loaded = load_settings(env={}, overrides=told)
        database = Database(loaded.settings.database_url(), loaded.settings.database)
        migrate.upgrade(database)
        try:
            _fill(loaded, database, redis_process.url, now_s)
        finally:
            database.close()
        yield Shop(loaded, engine, now_s)


def _fill(loaded: Loaded, database: Database, redis_url: str, now_s: int) -> None:
    random = np.random.default_rng(3)
    histories = []
    for _ in range(USERS):
        count = int(random.integers(0, 41))
        times = np.sort(random.integers(now_s - 90 * 86400, now_s, count))
        histories.append(pack(random.integers(1, ITEMS + 1, count), random.integers(1, 3, count), times))
    with database.write() as connection:
        connection.execute(insert(items), [_item(n, now_s) for n in range(1, ITEMS + 1)])
        connection.execute(
            insert(item_daily),
            [{"occurred_day": 20_000, "item_index": n, "action": 1, "events": 500 - n} for n in range(1, ITEMS + 1)],
        )
        connection.execute(counters.delete().where(counters.c.name == "catalogue"))
        connection.execute(insert(counters).values(name="catalogue", value=1))
        connection.execute(insert(user_state), [{"user_key": f"u:{n}", "revision": 1} for n in range(USERS)])
        connection.execute(
            insert(events), [row for n, history in enumerate(histories) for row in _events(n, history, now_s)]
        )
    _publish_index(loaded, database)
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
        pipe.flushall()
        for n, history in enumerate(histories):
            if n % 3:
                pipe.hset(keys.history_key(f"u:{n}"), mapping={keys.REVISION: b"1", keys.ROWS: history.tobytes()})
        pipe.execute()


def _item(number: int, now_s: int) -> dict[str, Any]:
    return {
        "item_index": number, "item_id": f"item-{number}", "known": True, "title": None,
        "categories": [f"c{number % 7}"], "is_hidden": number % 41 == 0, "price": float(number % 100),
        "created_at_us": now_s * 1_000_000 - number * DAY_US // 4, "properties": {}, "embeddings": {}, "revision": 1,
        "updated_at_us": now_s * 1_000_000,
    }  # fmt: skip


def _events(user: int, history: np.ndarray, now_s: int) -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"{user}-{place}", "occurred_day": int(row["time"]) // 86400, "user_key": f"u:{user}",
            "item_index": int(row["item"]), "action": int(row["action"]), "event_seq": user * 100 + place,
            "occurred_at_us": int(row["time"]) * 1_000_000, "received_at_us": now_s * 1_000_000,
        }
        for place, row in enumerate(history)
    ]  # fmt: skip


def _publish_index(loaded: Loaded, database: Database) -> None:
    settings = loaded.settings
    store, actions = ArtifactStore(settings.artifacts_dir()), ActionTable.from_schema(settings.data)
    reader = FeatureReader(database, redis.asyncio.Redis(), settings.features, actions)
    stock = read_stock(reader, time.time_ns() // 1000)
    manifest = IndexBuilder(store, actions).build(reader.training_events(), stock, Model.open(store, "m-1"))
    assert store.manifest(ModelManifest, "m-1").vocabulary > ITEMS
    with database.write() as connection:
        release = Release(release="r-1", model_version="m-1", index_version=manifest.version)
        deployments.promote(connection, release, settings=None, actor="test")


async def online_slates(desk: Desk, spec: SlateSpec, asks: Sequence[SlateAsk], now_s: int) -> list[Slate]:
    """As the routes do it, with all the time in the world and a clock of the test's own."""
    scene, catalogue = desk.builder.scene(spec.scene), desk.holder.current().catalogue
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(ask: SlateAsk) -> Slate:
        given = [index for item in ask.item_ids if (index := catalogue.index_of(item)) is not None]
        query = Query(
            user_key=ask.user_key,
            scene=spec.scene,
            weights=scene.weights,
            count=spec.count,
            deadline=time.monotonic() + 30,
            now_us=now_s * 1_000_000,
            seed=1,
            hide_seen=scene.hide_seen and not ask.item_ids,
            filter=None if spec.filter is None else desk.builder.filter(spec.filter),
            scene_filter=desk.builder.scene_filter(scene),
            exclude=no_items(),
            diversity=scene.diversity if spec.diversity is None else spec.diversity,
            input_list=np.array(given, np.int32) if ask.item_ids else None,
        )
        async with limit:
            query = replace(query, deadline=time.monotonic() + 30)
            return await desk.server.serve(query, route="test")

    return list(await asyncio.gather(*map(one, asks)))


def same(batch: UserSlate, online: Slate, *, by_score: bool) -> None:
    assert batch.error is None
    assert batch.degraded == tuple(f"{row.stage}:{row.cause}" for row in online.degraded) == ()
    shown, score = online.items.item_index, online.items.score
    np.testing.assert_allclose(batch.scores, score, atol=1e-5)
    if not by_score:
        assert batch.item_index.tolist() == shown.tolist()
        return
    runs = np.concatenate([[0], np.cumsum(np.diff(score) < -1e-5)])
    last = runs[-1]  # of equal ones at the end, another may be cut off
    inside = (runs < last) | (np.sum(runs == last) == 1)
    for found in (batch.item_index, shown):
        assert len(set(found.tolist())) == len(found)
    ours, theirs = (found[np.lexsort((found, runs))][inside] for found in (batch.item_index, shown))
    assert ours.tolist() == theirs.tolist()


async def desk_and_maker(shop: Shop, check: Any, *, patience_s: float = 10.0) -> None:
    board = ReadinessBoard()
    async with (
        recommender_opened(shop.loaded, Metrics("recommender"), board) as state,
        bulk_opened(shop.loaded.settings, Metrics("jobs"), patience_s=patience_s) as maker,
    ):

        async def is_ready() -> bool:
            return board.now().ready and state["desk"].holder.current().release is not None

        await eventually(is_ready)
        await check(state["desk"], maker)


def test_the_slate_of_a_job_is_the_slate_of_a_request(shop: Shop) -> None:
    random = np.random.default_rng(5)
    chosen = random.choice(USERS, CHECKED, replace=False).tolist()
    asks = [SlateAsk(f"u:{n}") for n in chosen[:-1]] + [SlateAsk("u:whom nobody knows")]
    lists = [
        SlateAsk(f"u:{n}", tuple(f"item-{i}" for i in random.integers(0, ITEMS + 20, 25).tolist())) for n in chosen[:30]
    ]
    home, few = SlateSpec("home", 20, now_s=shop.now_s), asks[:30]

    async def check(desk: Desk, maker: BulkSlates) -> None:
        assert maker.release == desk.holder.current().release
        cases = [
            (home, asks, True),
            (replace(home, filter="price > 20", count=200), few, True),
            (replace(home, scene="shelf"), few, False),
            (replace(home, diversity=0.5, count=7), few, False),
            (home, lists, True),
        ]
        for spec, people, by_score in cases:
            batch = await maker.slates(spec, people)
            online = await online_slates(desk, spec, people, shop.now_s)
            assert [slate.user_key for slate in batch] == [ask.user_key for ask in people]
            assert sum(len(slate.item_ids) for slate in batch) > 0
            for ours, theirs in zip(batch, online, strict=True):
                same(ours, theirs, by_score=by_score)
                assert [f"item-{index}" for index in ours.item_index.tolist()] == list(ours.item_ids)

    asyncio.run(desk_and_maker(shop, check))


def test_a_spec_that_cannot_be_served_is_refused_and_an_engine_that_is_gone_is_no_slate(shop: Shop) -> None:
    async def check(_desk: Desk, maker: BulkSlates) -> None:
        with pytest.raises(NotFound, match="scene"):
            await maker.slates(SlateSpec("attic", 5), [SlateAsk("u:1")])
        with pytest.raises(FilterInvalid):
            await maker.slates(SlateSpec("home", 5, filter="price <"), [SlateAsk("u:1")])
        assert await maker.slates(SlateSpec("home", 5), []) == []
        await asyncio.to_thread(shop.engine.kill)
        with pytest.raises(InferenceUnavailable, match="tried again"):
            await maker.slates(SlateSpec("home", 5), [SlateAsk(f"u:{n}") for n in range(100)])

    asyncio.run(desk_and_maker(shop, check, patience_s=0.5))
