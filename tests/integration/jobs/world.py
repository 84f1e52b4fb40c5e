"""Jobs over real stores, carried out in this process by a maker of slates that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, select

from services.recommender.jobs.desk import JobDesk, Seen
from services.recommender.jobs.metrics import ChunkMetrics
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.work import SlateAsk, SlateSpec, UserSlate
from services.recommender.jobs.working import Bench, turn
from shared.contracts.manifest import Release
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage.database import Database
from shared.storage.redis import connect
from shared.storage.tables import job_chunks, jobs, user_state, users

RELEASE = Release(release="r-1", model_version="m-1", index_version="i-1")
Make = Callable[[SlateAsk], UserSlate]


def slate_of(ask: SlateAsk, count: int = 3) -> UserSlate:
    """Items 1, 2, 3…, as strings too; those of a given list keep its order."""
    names = ask.item_ids or tuple(f"item-{number}" for number in range(1, count + 1))
    index = np.arange(1, len(names) + 1, dtype=np.int32)
    return UserSlate(ask.user_key, names, index, np.linspace(1, 0.5, len(names), dtype=np.float32))


@dataclass
class FakeMaker:
    """`make` stands in for one user; `hang`: an answer never comes; `error`: raised for the whole chunk."""

    make: Make = slate_of
    error: Exception | None = None
    hang: bool = False
    release: Release | None = RELEASE
    chunks: list[list[str]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    meanwhile: Callable[[], None] = lambda: None

    async def slates(self, spec: SlateSpec, asks: Sequence[SlateAsk]) -> list[UserSlate]:
        self.chunks.append([ask.user_key for ask in asks])
        self.asked.set()
        self.meanwhile()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return [self.make(ask) for ask in asks]


@dataclass
class World:
    database: Database
    settings: Settings
    maker: FakeMaker
    bench: Bench
    desk: JobDesk
    metrics: Metrics

    def submit(self, kind: str = "slate", *, key: str | None = None, **params: Any) -> str:
        seen, _ = self.desk.submit(read_body({"type": kind, "params": params}), actor="test", idempotency_key=key)
        return seen.job.job_id

    def work(self, turns: int = 200) -> None:
        """Until nothing is due."""
        for _ in range(turns):
            if not turn(self.bench):
                return
        raise AssertionError(f"chunks are still due after {turns} turns")

    def seen(self, job_id: str) -> Seen:
        return self.desk.get(job_id)

    def rows(self, table: Any, job_id: str) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(table).where(table.c.job_id == job_id)))

    def chunk(self, job_id: str, number: int) -> Any:
        return next(row for row in self.rows(job_chunks, job_id) if row.chunk == number)

    def let_pass(self, seconds: float) -> None:
        """As if so much time had gone by: every due time lies earlier."""
        with self.database.write() as connection:
            earlier = job_chunks.c.due_at_us - round(seconds * 1e6)
            connection.execute(job_chunks.update().values(due_at_us=earlier))

    def put_users(self, count: int, **properties: Any) -> list[str]:
        keys = [f"u:user-{number:05d}" for number in range(count)]

        def write(connection: Connection) -> None:
            connection.execute(insert(user_state), [{"user_key": key, "revision": 1} for key in keys])
            rows = [
                {
                    "user_key": key,
                    "properties": {"country": "DE" if place % 2 else "FR", **properties},
                    "segments": ["even"] if place % 2 == 0 else [],
                    "created_at_us": 1,
                    "updated_at_us": 1,
                }
                for place, key in enumerate(keys)
            ]
            connection.execute(insert(users), rows)

        self.database.transact(write)
        return keys

    def job_row(self, job_id: str) -> Any:
        return self.rows(jobs, job_id)[0]


@contextlib.contextmanager
def world(loaded: Loaded, database: Database) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    settings, maker = loaded.settings, FakeMaker()
    redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop)

    try:
        metrics = Metrics("jobs_worker")
        bench = Bench(settings, database, redis, lambda: maker, run, "test-worker", ChunkMetrics(metrics))
        yield World(database, settings, maker, bench, JobDesk(database, settings), metrics)
    finally:
        run(redis.aclose(close_connection_pool=True)).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def lines(path: Path, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows))
