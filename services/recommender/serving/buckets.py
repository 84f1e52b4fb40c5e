"""Sticky buckets in Redis: what a unit met before, so that signing in or a new weight does not change its variant.

    silkrec:sb1:{user_key of the unit}   JSON {"<experiment>__<phase>": variant}; TTL 90 days after the last write

Read in the features' own round trip (`Query.extra_keys`), written behind the answer. A cache like all of Redis: what is
lost is hashed again, to the same variant for the same id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from redis.asyncio import Redis

from services.recommender.experiments.enrolment import Assignment
from services.recommender.experiments.sticky import Buckets, bucket_key, merge
from shared.identity import user_key
from shared.storage.redis import RedisFailure

TTL_S = 90 * 86_400
MAX_BUCKETS = 200


def sticky_key(kind: str, value: str) -> str:
    """`kind` user or visitor."""
    return f"silkrec:sb1:{user_key(value, None) if kind == 'user' else user_key(None, value)}"


def decode(blob: bytes | None) -> Buckets:
    """Empty for nothing, damage, or another format."""
    if blob is None:
        return {}
    try:
        found = orjson.loads(blob)
    except orjson.JSONDecodeError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def merged(units: Mapping[str, str], extras: Mapping[str, bytes]) -> Buckets:
    """Of a request's ids; the user's own beat the visitor's."""
    own = {kind: decode(extras.get(sticky_key(kind, value))) for kind, value in units.items()}
    return merge(own.get("user", {}), own.get("visitor", {}))


def to_remember(assignments: Sequence[Assignment], extras: Mapping[str, bytes]) -> dict[str, bytes]:
    """Redis keys and their new values. A bucket found under the visitor is written under the user too, as GrowthBook
    does: the next visit may come without the visitor's id."""
    fresh: dict[str, dict[str, str]] = {}
    for one in assignments:
        if one.is_data and one.variant is not None and one.unit:
            key = sticky_key(one.unit, one.value)
            fresh.setdefault(key, {})[bucket_key(one.experiment, one.phase)] = one.variant
    changed = {}
    for key, buckets in fresh.items():
        before = decode(extras.get(key))
        if any(before.get(name) != variant for name, variant in buckets.items()):
            newest = list({**before, **buckets}.items())[-MAX_BUCKETS:]
            changed[key] = orjson.dumps(dict(newest))
    return changed


async def keep(redis: Redis, documents: Mapping[str, bytes]) -> None:
    """A cache write: nothing is said when Redis is away."""
    try:
        for key, blob in documents.items():
            await redis.set(key, blob, ex=TTL_S)
    except RedisFailure:
        return
