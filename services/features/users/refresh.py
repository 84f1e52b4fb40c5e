"""Profiles of dirty users into Redis again: the sweeper's second half, beside their histories."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis
from sqlalchemy import select

from services.features.users.profile_cache import Profile, ProfileCache
from shared.storage.database import Database
from shared.storage.tables import user_state, users


async def refresh_profiles(database: Database, redis_write: Redis, user_keys: Sequence[str]) -> None:
    """Call it before the marks of these users (a sweep's worth, at most 1,000) are cleared: a profile that was PUT
    while Redis was away would otherwise stay old there for its whole TTL. Raises DatabaseUnavailable, RedisFailure."""

    def read() -> dict[str, Profile]:
        present = (
            select(users.c.user_key, users.c.properties, users.c.segments, users.c.updated_at_us)
            .select_from(users.join(user_state, user_state.c.user_key == users.c.user_key))
            .where(users.c.user_key.in_(user_keys), user_state.c.deleted_at_us.is_(None))
        )
        with database.read() as connection:
            return {
                row.user_key: Profile(row.properties, tuple(row.segments), row.updated_at_us)
                for row in connection.execute(present)
            }

    found = await database.run(read)
    if found:
        await ProfileCache(redis_write).store_many(found)
