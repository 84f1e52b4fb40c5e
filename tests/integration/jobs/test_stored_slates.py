"""What is left of a batch slate when Redis has lost it, or is away."""

from __future__ import annotations

import asyncio

import pytest

from services.features.reader import FeatureReader
from services.recommender.components.stored import batch_slate_key, unpack_batch_slate
from services.recommender.serving.stored_slates import StoredSlates
from shared.actions import ActionTable
from shared.storage.redis import connect
from tests.integration.jobs.world import World
from tests.servers import free_port

pytestmark = pytest.mark.integration
KEY = batch_slate_key("r-1", "home", "u:ann")
OTHER_RELEASE = batch_slate_key("r-0", "home", "u:ann")


async def asked(world: World, redis_url: str) -> tuple[dict[str, bytes | None], bytes | None]:
    """The extras of a reader over `redis_url`, and what Redis holds behind the write-back."""
    settings = world.settings
    redis = connect(redis_url, settings.redis, timeout_ms=1000)
    actions = ActionTable.from_schema(settings.data)
    slates = StoredSlates(ttl_s=3600)
    reader = FeatureReader(world.database, redis, settings.features, actions, stored_extras=slates)
    try:
        view = await reader.user("u:ann", extra_keys=[KEY, OTHER_RELEASE], timeout_s=5.0)
        tasks = reader._users._tasks
        while tasks._spawned:
            await asyncio.wait(set(tasks._spawned))
        held = None if redis_url.endswith("/9") else await redis.get(KEY)
        return dict(view.extras), held if isinstance(held, bytes) else None
    finally:
        await reader.close()
        await redis.aclose(close_connection_pool=True)


def test_a_slate_that_redis_lost_comes_from_the_database_and_goes_back(jobs_world: World) -> None:
    jobs_world.submit(user_ids=["ann"], outputs=["database"])
    jobs_world.work()
    extras, held = asyncio.run(asked(jobs_world, jobs_world.settings.redis_url()))
    slate = unpack_batch_slate(extras[KEY])
    assert slate is not None
    assert slate.item_index.tolist() == [1, 2, 3]
    assert extras[OTHER_RELEASE] is None
    assert held == extras[KEY]


def test_without_redis_the_batch_rung_still_has_its_slate(jobs_world: World) -> None:
    jobs_world.submit(user_ids=["ann"], outputs=["database"])
    jobs_world.work()
    extras, _ = asyncio.run(asked(jobs_world, f"redis://127.0.0.1:{free_port()}/9"))
    assert unpack_batch_slate(extras[KEY]) is not None


def test_a_slate_older_than_its_time_in_redis_is_none(jobs_world: World) -> None:
    jobs_world.submit(user_ids=["ann"], outputs=["database"])
    jobs_world.work()
    late = StoredSlates(ttl_s=3600, now_us=lambda: 2**60)
    with jobs_world.database.read() as connection:
        assert late.read(connection, [KEY]) == {}
        assert list(StoredSlates(ttl_s=3600).read(connection, [KEY, "silkrec:lg1:r-1:u:ann"])) == [KEY]
