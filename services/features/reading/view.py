"""One user's view for a request: Redis first, the database where Redis cannot be believed, defaults when both are away.

It answers within `timeout_s` whatever is dead, and says what it had to do without; the rule of whom to believe is
infra/decisions/0004-who-may-trust-redis.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from redis.asyncio import Redis
from sqlalchemy import Connection

from services.features.reading.breaker import CircuitBreaker
from services.features.reading.cached import Cached, read_cached
from services.features.reading.patience import StoreLate, within
from services.features.reading.stored import Stored, read_stored
from services.features.users.profile_cache import Profile, ProfileCache
from shared.actions import ActionTable
from shared.contracts.history import UserHistory
from shared.errors import DatabaseUnavailable
from shared.observability.tasks import TaskOwner
from shared.settings.roots import HistorySettings
from shared.storage.database import Database
from shared.storage.redis import RedisFailure

# Of the time, when Redis hangs: the rest is the database's. On a busy machine Redis late is better than the database,
# which is later still and costs five times the CPU.
REDIS_SHARE = 0.65
# A call that was given less than this and came late says nothing about the store's health.
EVIDENCE_S = 0.005
WRITE_BACKS = 256

Store = Literal["redis", "database"]
What = Literal["history", "profile", "extras"]
Cause = Literal["absent", "stale", "unavailable", "timeout"]


@dataclass(frozen=True, slots=True)
class Miss:
    """`absent` covers damaged values and those of another format version."""

    store: Store
    what: What
    cause: Cause


@dataclass(frozen=True, slots=True)
class UserView:
    """`extras`: the extra keys that were asked for, None where Redis held nothing or did not answer."""

    history: UserHistory
    properties: Mapping[str, Any]
    segments: tuple[str, ...]
    extras: Mapping[str, bytes | None]
    misses: tuple[Miss, ...]


class HistoryCache(Protocol):
    """services.features.online.store.HistoryStore, as far as a reader uses it."""

    async def replace(self, history: UserHistory) -> bool: ...


class StoredExtras(Protocol):
    """Extra keys that the database can stand in for; `ttl_s`: how long they go back to Redis for."""

    @property
    def ttl_s(self) -> int: ...

    def read(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Those that it has. Blocking, on the connection that reads the user."""
        ...


class UserReader:
    """Owns the two circuit breakers and the write-backs in flight (at most WRITE_BACKS; more are left out)."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        histories: HistoryCache,
        settings: HistorySettings,
        actions: ActionTable,
        stored_extras: StoredExtras | None = None,
    ) -> None:
        self._stored_extras = stored_extras
        self._database = database
        self._redis = redis
        self._histories = histories
        self._profiles = ProfileCache(redis)
        self._max_events = settings.max_events
        self._actions = actions
        self._redis_breaker = CircuitBreaker()
        self._database_breaker = CircuitBreaker()
        self._tasks = TaskOwner(max_spawned=WRITE_BACKS)

    async def close(self) -> None:
        await self._tasks.close()

    async def user(self, user_key: str, extra_keys: Sequence[str], timeout_s: float) -> UserView:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        cached, cause = await self._ask_redis(user_key, extra_keys, timeout_s * REDIS_SHARE)
        if cached.lease and cached.history is not None and cached.profile is not None:
            return _view(cached.history, cached.profile, cached.extras, ())
        answered = cause == "absent"
        misses = _redis_misses(cached, cause, asked_extras=bool(extra_keys))
        revision = cached.history.revision if cached.history is not None else None
        extras = cached.extras or dict.fromkeys(extra_keys)
        lost = [key for key, value in extras.items() if value is None]
        stored, cause = await self._ask_database(user_key, revision, lost, deadline - clock())
        if stored is None:
            misses += _database_misses(cached, cause)
            history = cached.history or UserHistory(user_key)
            return _view(history, cached.profile or Profile(), extras, misses)
        misses += _stale(cached, stored)
        if answered:
            self._write_back(user_key, cached, stored)
        history = stored.history or cached.history or UserHistory(user_key)
        return _view(history, stored.profile, {**extras, **stored.extras}, misses)

    async def _ask_redis(self, user_key: str, extra_keys: Sequence[str], budget_s: float) -> tuple[Cached, Cause]:
        if not self._redis_breaker.allow():
            return Cached(), "unavailable"
        try:
            cached = await within(read_cached(self._redis, user_key, extra_keys), budget_s)
        except RedisFailure as error:
            late = _is_late(error)
            if _is_evidence(error, budget_s):
                self._redis_breaker.failed(late=late)
            return Cached(), "timeout" if late else "unavailable"
        self._redis_breaker.succeeded()
        return cached, "absent"

    async def _ask_database(
        self, user_key: str, revision: int | None, extra_keys: Sequence[str], budget_s: float
    ) -> tuple[Stored | None, Cause]:
        if not self._database_breaker.allow():
            return None, "unavailable"
        try:
            stored = await within(self._database.run(self._read, user_key, revision, extra_keys), budget_s)
        except TimeoutError as error:
            if _is_evidence(error, budget_s):
                self._database_breaker.failed(late=True)
            return None, "timeout"
        except DatabaseUnavailable:
            self._database_breaker.failed()
            return None, "unavailable"
        self._database_breaker.succeeded()
        return stored, "absent"

    def _read(self, user_key: str, revision: int | None, extra_keys: Sequence[str]) -> Stored:
        with self._database.read() as connection:
            stored = read_stored(
                connection, user_key, revision=revision, max_events=self._max_events, actions=self._actions
            )
            if self._stored_extras is None or stored.deleted or not extra_keys:
                return stored
            return replace(stored, extras=self._stored_extras.read(connection, extra_keys))

    def _write_back(self, user_key: str, cached: Cached, stored: Stored) -> None:
        """Nothing of a deleted user goes back."""
        if stored.deleted:
            return
        profile = stored.profile if stored.profile != cached.profile else None
        if stored.history is not None or profile is not None or stored.extras:
            self._tasks.spawn("history write-back", self._put(user_key, stored, profile))

    async def _put(self, user_key: str, stored: Stored, profile: Profile | None) -> None:
        try:
            if stored.history is not None:
                await self._histories.replace(stored.history)
            if profile is not None:
                await self._profiles.store(user_key, profile)
            if self._stored_extras is not None:
                for key, value in stored.extras.items():
                    await self._redis.set(key, value, ex=self._stored_extras.ttl_s, nx=True)
        except RedisFailure:
            self._redis_breaker.failed()


def _is_evidence(error: BaseException, budget_s: float) -> bool:
    if isinstance(error, StoreLate):
        return error.punctual and budget_s >= EVIDENCE_S
    return not _is_late(error) or budget_s >= EVIDENCE_S


def _is_late(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()


def _view(
    history: UserHistory, profile: Profile, extras: Mapping[str, bytes | None], misses: Sequence[Miss]
) -> UserView:
    return UserView(history, profile.properties, profile.segments, extras, tuple(misses))


def _redis_misses(cached: Cached, cause: Cause, *, asked_extras: bool) -> list[Miss]:
    misses = []
    if cached.history is None:
        misses.append(Miss("redis", "history", cause))
    if cached.profile is None:
        misses.append(Miss("redis", "profile", cause))
    if cause != "absent" and asked_extras:
        misses.append(Miss("redis", "extras", cause))
    return misses


def _database_misses(cached: Cached, cause: Cause) -> list[Miss]:
    """What the database was needed for: a trusted history, or the profile, may have been there already."""
    misses = []
    if cached.history is None or not cached.lease:
        misses.append(Miss("database", "history", cause))
    if cached.profile is None:
        misses.append(Miss("database", "profile", cause))
    return misses


def _stale(cached: Cached, stored: Stored) -> list[Miss]:
    misses = []
    if cached.history is not None and stored.history is not None:
        misses.append(Miss("redis", "history", "stale"))
    if cached.profile is not None and cached.profile != stored.profile:
        misses.append(Miss("redis", "profile", "stale"))
    return misses
