"""What one POST /v1/recommend costs the API process: everything is real but inference, which answers at once.

    python benchmarks/recommend_route.py [--items 1700 100000] [--seconds 5] [--concurrency 4] [--json FILE]

The application of `services.recommender.app` over SQLite, a private Redis with 200 history rows a user, a catalogue and
an index of 64 dimensions (flat; above 20,000 items 1,024 cells of which 16 are searched); requests enter as ASGI
messages, so no HTTP parser is measured. `cpu_ms`: CPU time of this process, all its threads, a request. `concurrency`
rows keep that many requests going in a closed loop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson
import redis

from benchmarks.report import machine, save
from services.features.online import keys
from services.recommender.app import build
from services.recommender.retrieval.index import ITEM_FILE, ROWS_FILE, USER_FILE, VECTORS_FILE
from services.recommender.serving import ServingState
from shared.contracts.history import pack
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.contracts.manifest import IndexManifest, ManifestAction, ModelManifest, Release, Space
from shared.observability.logging import configure
from shared.settings.load import Loaded, load_settings
from shared.storage import deployments, migrate
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import counters, item_daily, items
from tests.servers import redis_server

DIM, HISTORY, WARM_UP = 64, 200, 100
# More than one run asks for: hardly anybody comes twice, so that nothing kept for a user flatters the figures.
USERS = 20_000
FLAT_ITEMS, CELLS, NPROBE = 20_000, 1024, 16
HEADS = (("click", 2), ("view", 3), ("add_to_cart", 4), ("purchase", 5), ("like", 6))
DAY_US = 86_400_000_000
CONFIGURATION = {
    "data": {
        "item_fields": {"brand": {"type": "string"}},
        "scenes": {
            "home": {"weights": {"click": 1.0, "purchase": 4.0}},
            "explored": {"weights": {"click": 1.0, "purchase": 4.0}, "exploration": 0.1, "diversity": 0.3},
        },
    },
}
BODIES: dict[str, dict[str, Any]] = {
    "plain": {"count": 10},
    "full": {
        "scene": "explored",
        "count": 20,
        "filter": 'price < 50 AND NOT brand IN ("b1", $brand)',
        "filter_values": {"brand": "b2"},
        "promotions": [{"name": "sale", "filter": 'brand = "b7"', "position": 1}],
        "return_properties": ["title", "price", "categories"],
    },
}


class InstantInference:
    def __init__(self) -> None:
        random = np.random.default_rng(2)
        self._scores = random.random((5000, len(HEADS)), np.float32)
        self._vector = random.standard_normal(DIM).astype(np.float32)

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        return EncodeResult(self._vector, request.model_version)

    async def rank(self, request: RankRequest) -> RankResult:
        count = len(request.candidate)
        return RankResult(self._scores[:count], np.ones(count, np.bool_), request.model_version)

    async def ready(self, _model_version: str) -> bool:
        return True

    async def close(self) -> None:
        """Nothing is open."""


def put_catalogue(database: Database, count: int) -> None:
    now_us = time.time_ns() // 1000
    with database.write() as connection:
        for first in range(1, count + 1, 5000):
            numbers = range(first, min(first + 5000, count + 1))
            connection.execute(items.insert(), [_item(number, now_us) for number in numbers])
            daily = [{"occurred_day": 20_000, "item_index": n, "action": 2, "events": count - n + 1} for n in numbers]
            connection.execute(item_daily.insert(), daily)
        connection.execute(counters.delete().where(counters.c.name == "catalogue"))
        connection.execute(counters.insert().values(name="catalogue", value=count))


def _item(number: int, now_us: int) -> dict[str, Any]:
    return {
        "item_index": number,
        "item_id": f"item-{number}",
        "known": True,
        "title": f"Title {number}",
        "categories": [f"c{number % 40}"],
        "is_hidden": False,
        "price": float(number % 100),
        "created_at_us": now_us - (number % 300) * DAY_US,
        "properties": {"brand": f"b{number % 100}"},
        "embeddings": {},
        "revision": number,
        "updated_at_us": now_us,
    }


def put_release(loaded: Loaded, database: Database, count: int) -> None:
    store, now = ArtifactStore(loaded.settings.artifacts_dir()), datetime.now(UTC)
    vectors = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with store.staging(ModelManifest, "m") as folder:
        heads = tuple(ManifestAction(name=name, code=code) for name, code in HEADS)
        store.publish(
            folder,
            ModelManifest(
                version="m",
                created_at=now,
                catalogue_version=1,
                architecture={},
                actions=heads,
                vocabulary=count + 1,
                vector_dim=DIM,
                feature_schema="",
            ),
        )
    files = {"item": ITEM_FILE, "user": USER_FILE}
    with store.staging(IndexManifest, "i") as folder:
        kind = f"IVF{CELLS},Flat" if count > FLAT_ITEMS else "Flat"
        index = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        for file in files.values():
            faiss.write_index(index, str(folder / file))
        np.save(folder / ROWS_FILE, np.arange(1, count + 1, dtype=np.int32))
        np.save(folder / VECTORS_FILE, vectors)
        nprobe = NPROBE if kind != "Flat" else 0
        spaces = {
            name: Space(file=file, dim=DIM, count=count, kind=kind, nprobe=nprobe) for name, file in files.items()
        }
        store.publish(
            folder,
            IndexManifest(version="i", created_at=now, catalogue_version=1, model_version="m", spaces=spaces),
        )
    with database.write() as connection:
        release = Release(release="r", model_version="m", index_version="i")
        deployments.promote(connection, release, settings={}, actor="benchmark")


def put_users(url: str, count: int) -> None:
    random, now_s = np.random.default_rng(3), int(time.time())
    with redis.Redis.from_url(url) as connection, connection.pipeline(transaction=False) as client:
        client.set(keys.SYNC_LEASE, b"1", ex=86400)
        for number in range(USERS):
            key = f"u:{number}"
            rows = pack(
                random.integers(1, count + 1, HISTORY),
                random.choice([2, 3, 5, 6], HISTORY),
                now_s - np.arange(HISTORY)[::-1] * 60,
            )
            fields = {keys.REVISION: b"1", keys.ROWS: rows.tobytes(), keys.LAST_EVENT_ID: b"event-1"}
            client.hset(keys.history_key(key), mapping=fields)
            client.set(keys.profile_key(key), b'{"properties":{},"segments":[]}')
        client.execute()


@dataclass
class Caller:
    """Sends a body as one ASGI request and reads the answer."""

    app: Any
    state: dict[str, Any]

    async def post(self, body: dict[str, Any]) -> dict[str, Any]:
        pending = [{"type": "http.request", "body": orjson.dumps(body), "more_body": False}]
        status, parts = 0, []

        async def receive() -> dict[str, Any]:
            return pending.pop() if pending else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/recommend", "raw_path": b"/v1/recommend", "root_path": "", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080), "state": dict(self.state),
        }  # fmt: skip
        await self.app(scope, receive, send)
        answer: dict[str, Any] = orjson.loads(b"".join(parts))
        if status != 200 or len(answer["items"]) != body["count"]:
            raise SystemExit(f"the run is worth nothing: {status} {answer}"[:2000])
        return answer


async def closed_loop(
    caller: Caller, callers: Iterator[int], body: dict[str, Any], seconds: float, concurrency: int
) -> dict[str, Any]:
    took: list[float] = []
    stages: dict[str, list[float]] = {}
    sent = degraded = 0

    async def one(until: float, least: int, keep: bool) -> None:
        nonlocal sent, degraded
        begun = 0
        while begun < least or time.perf_counter() < until:
            begin = time.perf_counter()
            answer = await caller.post({"user_id": str(next(callers)), "deadline_ms": 1000, **body})
            begun += 1
            if keep:
                sent += 1
                degraded += bool(answer["degraded_stages"])
                took.append((time.perf_counter() - begin) * 1000)
                for name, value in answer["stage_ms"].items():
                    stages.setdefault(name, []).append(value)

    await one(0.0, WARM_UP, keep=False)
    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(begin + seconds, 1, keep=True) for _ in range(concurrency)))
    spent, cpu = time.perf_counter() - begin, time.process_time() - cpu
    p50, p95, p99 = (round(float(value), 3) for value in np.percentile(took, [50, 95, 99]))
    return {
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "cpu_ms": round(1000 * cpu / sent, 3),
        "requests_per_s": round(sent / spent, 1), "degraded": degraded / sent,
        "stage_ms": {name: round(float(np.median(values)), 3) for name, values in stages.items()},
    }  # fmt: skip


def _complete(state: ServingState, count: int) -> bool:
    return state.catalogue.count >= count and len(state.popular) >= count and state.release is not None


async def serve(loaded: Loaded, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    app = build(loaded, inference=InstantInference())
    rows, callers = [], itertools.cycle(range(USERS))
    async with app.router.lifespan_context(app) as state:
        desk = dict(state or {})["desk"]
        async with asyncio.timeout(300):
            while not _complete(desk.holder.current(), count):  # noqa: ASYNC110  (what is read has no event)
                await asyncio.sleep(0.1)
            await asyncio.sleep(3.0)  # warm-up and the frozen garbage collector follow
        for name, body in BODIES.items():
            for concurrency in dict.fromkeys((1, *options.concurrency)):
                row = await closed_loop(Caller(app, dict(state or {})), callers, body, options.seconds, concurrency)
                rows.append({"items": count, "variant": name, "concurrency": concurrency, **row})
                print(
                    f"{count:7} items  {name:6} x{concurrency:<3} p50 {row['p50_ms']:7.3f}  p99 {row['p99_ms']:7.3f} ms"
                    f"  cpu {row['cpu_ms']:6.3f} ms  {row['requests_per_s']:7.1f}/s"
                    f"  degraded {row['degraded']:.1%}",
                    flush=True,
                )
    return rows


def measure(loaded: Loaded, redis_url: str, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    database = Database(loaded.settings.database_url(), loaded.settings.database)
    migrate.upgrade(database)
    put_catalogue(database, count)
    put_release(loaded, database, count)
    put_users(redis_url, count)
    database.close()
    return asyncio.run(serve(loaded, count, options))


def run(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for count in options.items:
        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as server:
            overrides = {**CONFIGURATION, "state_dir": Path(folder) / "var", "redis.url": server.url}
            loaded = load_settings(env={}, overrides=overrides)
            loaded.settings.state.mkdir(parents=True)
            with (Path(folder) / "log").open("w") as log:
                configure(loaded.settings.log, stream=log)
                rows += measure(loaded, server.url, count, options)
    measured = {
        f"recommend_{row['items']}_{row['variant']}_x{row['concurrency']}_{name}": row[name]
        for row in rows
        for name in ("p50_ms", "p99_ms", "cpu_ms", "requests_per_s")
    }
    about = {**machine(), "numpy": np.__version__}
    return {"machine": about, "workload": {"history": HISTORY, "users": USERS}, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1700, 100_000])
    parser.add_argument("--seconds", type=float, default=5.0, help="a row")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[4])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    save(result, options.json)


if __name__ == "__main__":
    main()
