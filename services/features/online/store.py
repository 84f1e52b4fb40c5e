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
from shared.contracts.history import HISTORY_ROW, UserHistory
from shared.settings.roots import HistorySettings

_US = 1_000_000
# Redis does nothing else during a call: 64 full histories are about 1 ms.
USERS_A_CALL = 64
# Microseconds since 1970 stay below 2^53, so Lua's doubles compare them exactly.
# One call does many users: a call each would cost this process 40 microseconds a user, this way it is 10.
_APPEND = """
local most, ttl = tonumber(ARGV[1]), ARGV[2]
local done = {}
for place, key in ipairs(KEYS) do
  local base = place * 6 - 4
  local before, after = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
  local held = redis.pcall('HMGET', key, 'rev', 'at', 'rows')
  if held.err then
    redis.call('DEL', key)
    held = {}
  end
  local revision = tonumber(held[1] or '0') or 0
  if revision >= after then
    done[place] = 1
  else
    local rows = false
    if revision == before and tonumber(held[2] or '0') <= tonumber(ARGV[base + 3]) then
      rows = held[3] or (revision == 0 and '')
    end
    if rows then
      rows = rows .. ARGV[base + 5]
      if #rows > most then rows = string.sub(rows, -most) end
      redis.call('HSET', key, 'rev', ARGV[base + 2], 'at', ARGV[base + 4], 'rows', rows, 'last', ARGV[base + 6])
      done[place] = 1
    else
      redis.call('DEL', key)
      redis.call('HSET', key, 'rev', ARGV[base + 2])
      done[place] = 0
    end
    redis.call('EXPIRE', key, ttl)
  end
end
return done
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
    """What one commit added to one user: `rows` packed, oldest first; the commit raised the revision to `revision`."""

    user_key: str
    revision: int
    rows: bytes
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
        calls = [self._append_call(additions[start : start + USERS_A_CALL]) for start in _starts(additions)]
        answers = await self._run(_APPEND, calls)
        done = [flag for answer in answers for flag in answer]
        return [row.user_key for row, kept in zip(additions, done, strict=True) if not kept]

    def _append_call(self, additions: Sequence[Addition]) -> tuple[Any, ...]:
        told: list[Any] = [self._max_bytes, self._ttl_s]
        for row in additions:
            told += (row.revision - 1, row.revision, row.first_us, row.last_us, row.rows, row.last_event_id)
        return (len(additions), *(history_key(row.user_key) for row in additions), *told)

    async def replace(self, history: UserHistory) -> bool:
        """False where Redis holds a newer revision already."""
        return (await self.replace_many([history]))[0]

    async def replace_many(self, histories: Sequence[UserHistory]) -> list[bool]:
        """In one round trip. A row keeps whole seconds, so an append within the newest row's second counts as out of
        order and replaces once more."""
        calls = [
            (
                1,
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

    async def _run(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """By EVALSHA; a server that lost its scripts (it was restarted) gets them once more."""
        if not calls:
            return []
        digest = _DIGESTS[script]
        try:
            return await self._execute(digest, calls)
        except NoScriptError:
            await self._redis.script_load(script)
            return await self._execute(digest, calls)

    async def _execute(self, digest: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            pipe.evalsha(digest, *call)
        return list(await pipe.execute())


def _starts(additions: Sequence[Addition]) -> range:
    return range(0, len(additions), USERS_A_CALL)
