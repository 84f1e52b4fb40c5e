"""What Redis says about a user, in one pipelined round trip. Reads and decodes; believes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.features.online.keys import LAST_EVENT_ID, REVISION, ROWS, SYNC_LEASE, history_key, profile_key
from services.features.users.profile_cache import Profile, decode
from shared.contracts.history import UserHistory, unpack

# A revision is a decimal of a BIGINT; longer is damage.
_REVISION_DIGITS = 19


@dataclass(frozen=True, slots=True)
class Cached:
    """`history` and `profile` are None when absent, damaged or of another format.

    With `lease` the history may be trusted.
    """

    history: UserHistory | None = None
    profile: Profile | None = None
    lease: bool = False
    extras: Mapping[str, bytes | None] = field(default_factory=dict)


async def read_cached(redis: Redis, user_key: str, extra_keys: Sequence[str]) -> Cached:
    """Raises what shared.storage.redis.RedisFailure names."""
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("HMGET", history_key(user_key), REVISION, ROWS, LAST_EVENT_ID)
    pipe.execute_command("MGET", profile_key(user_key), SYNC_LEASE, *extra_keys)
    fields, values = await pipe.execute(raise_on_error=False)
    if isinstance(values, Exception):
        raise values
    if isinstance(fields, ResponseError):  # WRONGTYPE: not a hash, so not of this format
        fields = [None, None, None]
    elif isinstance(fields, Exception):
        raise fields
    return Cached(
        decode_history(user_key, fields),
        decode(values[0]) if values[0] is not None else None,
        values[1] is not None,
        dict(zip(extra_keys, values[2:], strict=True)),
    )


def decode_history(user_key: str, fields: Sequence[Any]) -> UserHistory | None:
    """Of [REVISION, ROWS, LAST_EVENT_ID]; None unless all of it makes sense."""
    revision, rows, last = fields
    if revision is None or rows is None or not revision.isdigit() or len(revision) > _REVISION_DIGITS:
        return None
    try:
        unpacked = unpack(rows)
        last_event_id = last.decode("ascii") if last else None
    except ValueError:
        return None
    return UserHistory(user_key, unpacked, int(revision), last_event_id, "redis")
