"""What the user routes do: the database first, Redis after the commit, and a mark for the sweeper where Redis fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from sqlalchemy import Connection

from services.features.reading.history import load_history
from services.features.users import deletions, merge, profiles
from services.features.users.deletion_worker import Histories, now_us
from services.features.users.profile_cache import Profile, ProfileCache
from services.features.users.profiles import ProfileWrite, PutResult, UserProfile
from shared.actions import ActionTable
from shared.contracts.history import UserHistory
from shared.observability.logging import get_logger
from shared.settings.roots import HistorySettings
from shared.storage.database import Database
from shared.storage.redis import RedisFailure

_log = get_logger(__name__)
T = TypeVar("T")


class UserService:
    """Async; blocking work goes to the database's threads. Raises DatabaseUnavailable, NotFound, Conflict."""

    def __init__(
        self,
        database: Database,
        redis_write: Redis,
        histories: Histories,
        settings: HistorySettings,
        actions: ActionTable,
        *,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        self._database = database
        self._histories = histories
        self._profiles = ProfileCache(redis_write)
        self._max_events = settings.max_events
        self._actions = actions
        self._clock_us = clock_us

    async def put(self, writes: Sequence[ProfileWrite]) -> PutResult:
        """`refused` users are left as they were."""
        at_us = self._clock_us()
        result = await self._transact(lambda connection: profiles.put_profiles(connection, writes, at_us))
        await self._publish(result.written, at_us)
        return result

    async def patch(self, user_key: str, properties: Mapping[str, Any], segments: Sequence[str] | None) -> UserProfile:
        at_us = self._clock_us()
        patched = await self._transact(
            lambda connection: profiles.patch_profile(connection, user_key, properties, segments, at_us)
        )
        await self._publish([patched], at_us)
        return patched

    async def get(self, user_key: str) -> UserProfile:
        return await self._read(lambda connection: profiles.get_profile(connection, user_key))

    async def page(self, after: str, limit: int) -> list[UserProfile]:
        return await self._read(lambda connection: profiles.list_profiles(connection, after, limit))

    async def merge(self, visitor_key: str, into: str) -> merge.Merged:
        at_us = self._clock_us()
        merged = await self._transact(lambda connection: merge.merge_visitor(connection, visitor_key, into, at_us))
        if merged.changed:
            await self._rebuild((visitor_key, into), at_us)
        return merged

    async def delete(self, user_key: str) -> str:
        """The deletion_id; the worker does the rest."""
        at_us = self._clock_us()
        return await self._transact(lambda connection: deletions.request_deletion(connection, user_key, at_us))

    async def deletion(self, deletion_id: str) -> deletions.Deletion:
        return await self._read(lambda connection: deletions.get_deletion(connection, deletion_id))

    async def _publish(self, written: Sequence[UserProfile], marked_us: int) -> None:
        """Until Redis holds them the users stay dirty, which takes the lease away and lets readers ask the database."""
        cached = {row.user_key: Profile(row.properties, row.segments, row.updated_at_us) for row in written}
        try:
            await self._profiles.store_many(cached)
        except RedisFailure as error:
            _log.warning("profiles are not in Redis yet", users=len(written), cause=type(error).__name__)
            return
        await self._clear_dirty([row.user_key for row in written], marked_us)

    async def _rebuild(self, user_keys: Sequence[str], marked_us: int) -> None:
        try:
            for user_key in user_keys:
                await self._histories.replace(await self._database.run(self._history, user_key))
        except RedisFailure as error:
            _log.warning("merged histories are not in Redis yet", cause=type(error).__name__)
            return
        await self._clear_dirty(user_keys, marked_us)

    def _history(self, user_key: str) -> UserHistory:
        with self._database.read() as connection:
            return load_history(connection, user_key, max_events=self._max_events, actions=self._actions)

    async def _clear_dirty(self, user_keys: Sequence[str], marked_us: int) -> None:
        await self._transact(lambda connection: profiles.clear_dirty(connection, user_keys, marked_us))

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        return await self._database.run(self._database.transact, work)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._database.read() as connection:
                return work(connection)

        return await self._database.run(read)
