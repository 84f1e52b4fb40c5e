"""The profile in Redis: JSON with the time of the change it stands for, so that an older one never replaces a newer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from services.features.online.keys import PROFILE_TTL_S, profile_key

# A reader may hold a profile from before a deletion for as long as its write-back waits; that is seconds.
TOMBSTONE_TTL_S = 60
_STORE = """
local held = redis.call('GET', KEYS[1])
if held then
  local ok, value = pcall(cjson.decode, held)
  if ok and type(value) == 'table' and tonumber(value['updated_at_us'] or 0) > tonumber(ARGV[1]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


@dataclass(frozen=True, slots=True)
class Profile:
    """`updated_at_us` 0: never PUT."""

    properties: Mapping[str, Any] = field(default_factory=dict)
    segments: tuple[str, ...] = ()
    updated_at_us: int = 0


def decode(value: bytes) -> Profile | None:
    """None for anything that is not a profile of this format."""
    try:
        tree = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(tree, dict):
        return None
    properties, segments = tree.get("properties"), tree.get("segments")
    if not isinstance(properties, dict) or not isinstance(segments, list):
        return None
    if not all(isinstance(segment, str) for segment in segments):
        return None
    changed = tree.get("updated_at_us")
    return Profile(properties, tuple(segments), changed if isinstance(changed, int) else 0)


def encode(profile: Profile) -> bytes:
    return orjson.dumps(
        {
            "properties": dict(profile.properties),
            "segments": list(profile.segments),
            "updated_at_us": profile.updated_at_us,
        }
    )


class ProfileCache:
    """Raises what shared.storage.redis.RedisFailure names; the caller decides what a lost cache write means."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def store(self, user_key: str, profile: Profile) -> None:
        await self._put(user_key, profile, PROFILE_TTL_S)

    async def store_many(self, profiles: Mapping[str, Profile]) -> None:
        """In one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for user_key, profile in profiles.items():
            pipe.eval(_STORE, 1, profile_key(user_key), profile.updated_at_us, encode(profile), PROFILE_TTL_S)
        await pipe.execute()

    async def bury(self, user_key: str, at_us: int) -> None:
        """An empty profile that outlives any write-back in flight, and then is gone."""
        await self._put(user_key, Profile(updated_at_us=at_us), TOMBSTONE_TTL_S)

    async def _put(self, user_key: str, profile: Profile, ttl_s: int) -> None:
        await self._redis.eval(_STORE, 1, profile_key(user_key), profile.updated_at_us, encode(profile), ttl_s)
