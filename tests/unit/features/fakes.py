"""A Redis and a history cache for the reader, made by hand: in memory, and dead or hung when a test says so."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.features.online.keys import LAST_EVENT_ID, REVISION, ROWS, SYNC_LEASE, history_key, profile_key
from services.features.users.profile_cache import Profile, encode
from shared.contracts.history import UserHistory

State = Literal["up", "dead", "hung"]


class FakeRedis:
    """The two commands that the reader pipelines, and the EVAL of the profile cache (which always stores)."""

    def __init__(self) -> None:
        self.state: State = "up"
        self.values: dict[str, bytes] = {}
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.round_trips = 0

    def client(self) -> Redis:
        return cast("Redis", self)

    def pipeline(self, *, transaction: bool) -> _FakePipeline:
        assert not transaction
        return _FakePipeline(self)

    async def eval(self, _script: str, _keys: int, key: str, *args: Any) -> int:
        await self.answer()
        self.values[key] = args[1]
        return 1

    async def answer(self) -> None:
        self.round_trips += 1
        if self.state == "dead":
            raise RedisConnectionError("connection refused")
        if self.state == "hung":
            await asyncio.Event().wait()

    def run(self, command: str, *args: Any) -> list[bytes | None]:
        if command == "HMGET":
            return [self.hashes.get(args[0], {}).get(field) for field in args[1:]]
        assert command == "MGET"
        return [self.values.get(key) for key in args]

    def hold(self, user_key: str, history: UserHistory, profile: Profile | None = None) -> None:
        self.hashes[history_key(user_key)] = {
            REVISION: str(history.revision).encode(),
            ROWS: history.rows.tobytes(),
            LAST_EVENT_ID: (history.last_event_id or "").encode(),
        }
        if profile is not None:
            self.values[profile_key(user_key)] = encode(profile)

    def lease(self) -> None:
        self.values[SYNC_LEASE] = b"1"


class _FakePipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        await self._redis.answer()
        return [self._redis.run(*command) for command in self._commands]


class FakeHistories:
    """Remembers what was written back; `written` is set by the first."""

    def __init__(self) -> None:
        self.replaced: list[UserHistory] = []
        self.written = asyncio.Event()

    async def replace(self, history: UserHistory) -> bool:
        self.replaced.append(history)
        self.written.set()
        return True
