"""Slates in Redis, where the `batch` rung of a request finds them within its one round trip."""

from __future__ import annotations

from redis.asyncio import Redis

from services.recommender.components.stored import batch_slate_key
from services.recommender.jobs.outputs.made import Made
from shared.errors import RedisUnavailable
from shared.storage.redis import RedisFailure

# 500 slates of 10 items are 46 KB: one packet of work for Redis, far below the write time-out.
PIPELINE_KEYS = 500


async def write(redis: Redis, made: Made, ttl_s: int) -> None:
    """Before the chunk's commit: writing again what is there changes nothing. Raises RedisUnavailable."""
    try:
        for start in range(0, len(made.slates), PIPELINE_KEYS):
            pipe = redis.pipeline(transaction=False)
            for slate in made.slates[start : start + PIPELINE_KEYS]:
                key = batch_slate_key(made.release_name, made.scene, slate.user_key)
                pipe.set(key, made.packed(slate), ex=ttl_s)
            await pipe.execute()
    except RedisFailure as error:
        raise RedisUnavailable("Redis did not take the slates of a chunk", retry_after_s=2.0) from error
