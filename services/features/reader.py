"""Reading features in process: the one module of this service that the others import to read.

`FeatureReader.user` is for a request (async, never later than its time-out, never raises for a dead store); the rest
blocks and belongs into `await database.run(...)` or a tool. The work is done in `services/features/reading/`.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from services.features.online.store import HistoryStore
from services.features.reading.catalogue import ItemRow, read_changed_items
from services.features.reading.daily import DailyActions, read_daily_actions
from services.features.reading.many import read_many
from services.features.reading.training import TrainingEvents, read_training_events
from services.features.reading.view import Cause, HistoryCache, Miss, Store, StoredExtras, UserReader, UserView, What
from shared.actions import ActionTable
from shared.settings.roots import FeaturesSettings
from shared.storage.database import Database

__all__ = [
    "Cause",
    "DailyActions",
    "FeatureReader",
    "ItemRow",
    "Miss",
    "Store",
    "StoredExtras",
    "TrainingEvents",
    "UserView",
    "What",
]


class FeatureReader:
    """One a process; `close()` it in the event loop that called `user`."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        settings: FeaturesSettings,
        actions: ActionTable,
        *,
        histories: HistoryCache | None = None,
        stored_extras: StoredExtras | None = None,
    ) -> None:
        """`stored_extras`: finds extra keys in the database where a request asks it anyway."""
        self._database = database
        self._redis = redis
        self._max_events = settings.history.max_events
        self._actions = actions
        histories = histories or HistoryStore(redis, settings.history)
        self._users = UserReader(database, redis, histories, settings.history, actions, stored_extras)

    async def user(self, user_key: str, *, extra_keys: Sequence[str] = (), timeout_s: float) -> UserView:
        """History, profile and `extra_keys` in one Redis round trip; what Redis cannot be trusted with comes from the
        database, and extra keys with it (`stored_extras`). Defaults and misses for what neither gave in `timeout_s`."""
        return await self._users.user(user_key, extra_keys, timeout_s)

    async def users(self, user_keys: Sequence[str]) -> list[UserView]:
        """The same of many, in their order, for jobs: one Redis round trip, and the database for whom it lacks. Takes
        the time it takes; raises DatabaseUnavailable rather than giving defaults."""
        found = await read_many(
            self._redis, self._database, user_keys, max_events=self._max_events, actions=self._actions
        )
        return [UserView(history, profile.properties, profile.segments, {}, ()) for history, profile in found]

    async def close(self) -> None:
        await self._users.close()

    def changed_items(self, since_revision: int, limit: int = 5000) -> list[ItemRow]:
        """Rows with a higher revision, ordered by (revision, item_index); about `limit`, never half a revision.
        Raises DatabaseUnavailable, as do the other blocking reads."""
        with self._database.read() as connection:
            return read_changed_items(connection, since_revision, limit)

    def daily_actions(self, before: DailyActions | None = None) -> DailyActions:
        """`before`, an earlier answer, makes it cheap: it comes back itself when nothing changed."""
        with self._database.read() as connection:
            return read_daily_actions(connection, before)

    def training_events(self) -> TrainingEvents:
        with self._database.read() as connection:
            return read_training_events(connection, self._actions)
