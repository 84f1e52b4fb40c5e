"""Packed histories in Redis, changed by compare-and-set on the user's revision and never moved backwards.

`append` is the way of an event that was just committed: rows are added where Redis holds exactly the revision before.
Anything else (a gap, an older event, an absent or foreign value) is reported, and what is left is the new revision
without rows: readers see a miss and ask the database, and nobody can put older rows back. The caller may write the
whole history with `replace`. Every key has the TTL `features.history.ttl_s`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from services.features.online.keys import LAST_EVENT_ID, OCCURRED, REVISION, ROWS, history_key
from shared.contracts.history import HISTORY_ROW, History, UserHistory
from shared.settings.roots import HistorySettings

_US = 1_000_000
# Microseconds since 1970 stay below 2^53, so Lua's doubles compare them exactly.
_APPEND = """
local held = redis.pcall('HMGET', KEYS[1], ARGV[1], ARGV[3])
if held.err then held = {} end
local revision = tonumber(held[1] or '0') or 0
if revision >= tonumber(ARGV[6]) then return 1 end
local rows = false
if revision == tonumber(ARGV[5]) and tonumber(held[2] or '0') <= tonumber(ARGV[7]) then
  rows = held[1] and redis.call('HGET', KEYS[1], ARGV[2]) or (revision == 0 and '')
end
if not rows then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[6])
  redis.call('EXPIRE', KEYS[1], ARGV[12])
  return 0
end
rows = rows .. ARGV[9]
local most = tonumber(ARGV[11])
if #rows > most then rows = string.sub(rows, -most) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[6], ARGV[2], rows, ARGV[3], ARGV[8], ARGV[4], ARGV[10])
redis.call('EXPIRE', KEYS[1], ARGV[12])
return 1
"""
_REPLACE = """
local held = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(held) == 'string' and tonumber(held) and tonumber(held) > tonumber(ARGV[5]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[5], ARGV[2], ARGV[6], ARGV[3], ARGV[7], ARGV[4], ARGV[8])
redis.call('EXPIRE', KEYS[1], ARGV[9])
return 1
"""
_DIGESTS = {script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (_APPEND, _REPLACE)}
_FIELDS = (REVISION, ROWS, OCCURRED, LAST_EVENT_ID)


@dataclass(frozen=True, slots=True)
class Addition:
    """What one commit added to one user: `rows` [n], oldest first; the commit raised the revision to `revision`."""

    user_key: str
    revision: int
    rows: History
    first_us: int
    last_us: int
    last_event_id: str


class HistoryStore:
    """Raises what shared.storage.redis.RedisFailure names; the caller decides what a lost cache write means."""

    def __init__(self, redis: Redis, settings: HistorySettings) -> None:
        self._redis = redis
        self._ttl_s = settings.ttl_s
        self._max_bytes = settings.max_events * HISTORY_ROW.itemsize

    async def append(self, additions: Sequence[Addition]) -> list[str]:
        """In one round trip; returns the users of whom Redis now holds no rows."""
        calls = [
            (
                history_key(row.user_key),
                *_FIELDS,
                row.revision - 1,
                row.revision,
                row.first_us,
                row.last_us,
                row.rows.tobytes(),
                row.last_event_id,
                self._max_bytes,
                self._ttl_s,
            )
            for row in additions
        ]
        answers = await self._run(_APPEND, calls)
        return [row.user_key for row, done in zip(additions, answers, strict=True) if not done]

    async def replace(self, history: UserHistory) -> bool:
        """False where Redis holds a newer revision already."""
        return (await self.replace_many([history]))[0]

    async def replace_many(self, histories: Sequence[UserHistory]) -> list[bool]:
        """In one round trip. A row keeps whole seconds, so an append within the newest row's second counts as out of
        order and replaces once more."""
        calls = [
            (
                history_key(history.user_key),
                *_FIELDS,
                history.revision,
                history.rows.tobytes(),
                (int(history.rows["time"][-1]) + 1) * _US - 1 if len(history.rows) else 0,
                history.last_event_id or "",
                self._ttl_s,
            )
            for history in histories
        ]
        return [bool(done) for done in await self._run(_REPLACE, calls)]

    async def _run(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[int]:
        """By EVALSHA; a server that lost its scripts (it was restarted) gets them once more."""
        if not calls:
            return []
        digest = _DIGESTS[script]
        try:
            return await self._execute(digest, calls)
        except NoScriptError:
            await self._redis.script_load(script)
            return await self._execute(digest, calls)

    async def _execute(self, digest: str, calls: Sequence[tuple[Any, ...]]) -> list[int]:
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            pipe.evalsha(digest, 1, *call)
        return [int(answer) for answer in await pipe.execute()]
