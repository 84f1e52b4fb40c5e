"""The worker that carries deletions out, store by store, and goes on where a crash or an outage stopped it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis
from sqlalchemy import select

from services.features.online.keys import history_key
from services.features.users.deletions import (
    Deletion,
    Receipt,
    models_before,
    record,
    remove_rows,
    subject_keys,
    unfinished,
)
from services.features.users.latents import LatentsDoor
from services.features.users.profile_cache import TOMBSTONE_TTL_S, ProfileCache
from services.features.users.profiles import clear_dirty
from shared.contracts.history import UserHistory
from shared.errors import DatabaseUnavailable, InferenceUnavailable
from shared.observability.logging import get_logger
from shared.storage.database import Database
from shared.storage.redis import RedisFailure
from shared.storage.tables import deployments, user_state

POLL_S = 30.0
RETRY_S = 2.0
BATCH = 50
RELEASES_MAX = 1000
_log = get_logger(__name__)


class Histories(Protocol):
    """services.features.online.store.HistoryStore, as far as it is used here."""

    async def replace(self, history: UserHistory) -> bool: ...


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class DeletionStores:
    """Where a user may be found. `scenes` name the batch slates."""

    database: Database
    redis: Redis
    histories: Histories
    latents: LatentsDoor
    scenes: tuple[str, ...]


class DeletionWorker:
    """Give `run` to a TaskOwner; call `wake` after a request. Several processes may run one: every step can be done
    twice."""

    def __init__(self, stores: DeletionStores, *, clock_us: Callable[[], int] = now_us) -> None:
        self._stores = stores
        self._profiles = ProfileCache(stores.redis)
        self._clock_us = clock_us
        self._wake = asyncio.Event()
        self._stop = threading.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        try:
            while True:
                self._wake.clear()
                wait_s = POLL_S if await self.work_once() else RETRY_S
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            self._stop.set()

    async def work_once(self) -> bool:
        """One pass over the deletions under way; False when something is left to try again soon."""
        database = self._stores.database
        try:
            pending = await database.run(self._unfinished)
        except DatabaseUnavailable:
            return False
        complete = len(pending) < BATCH
        for deletion in pending:
            complete = await self._carry_out(deletion) and complete
        return complete

    def _unfinished(self) -> list[Deletion]:
        with self._stores.database.read() as connection:
            return unfinished(connection, BATCH)

    async def _carry_out(self, deletion: Deletion) -> bool:
        steps: dict[str, Callable[[Deletion], Awaitable[Receipt]]] = {
            "mysql": self._mysql,
            "redis": self._redis,
            "latents": self._latents,
            "batch_slates": self._batch_slates,
            "logs": self._logs,
            "models": self._models,
        }
        complete = True
        for store, receipt in deletion.receipts.items():
            if receipt["state"] != "pending":
                continue
            try:
                done = await steps[store](deletion)
                await self._record(deletion, store, {**done, "at_us": self._clock_us()})
            except (DatabaseUnavailable, InferenceUnavailable, *RedisFailure) as error:
                complete = False
                _log.warning(
                    "deletion step is tried again", deletion_id=deletion.deletion_id, store=store, cause=str(error)
                )
        return complete

    async def _record(self, deletion: Deletion, store: str, receipt: Receipt) -> None:
        def write() -> None:
            self._stores.database.transact(
                lambda connection: record(connection, deletion.deletion_id, store, receipt, self._clock_us())
            )

        await self._stores.database.run(write)

    async def _keys(self, deletion: Deletion) -> list[str]:
        def read() -> list[str]:
            with self._stores.database.read() as connection:
                return subject_keys(connection, deletion)

        return await self._stores.database.run(read)

    async def _mysql(self, deletion: Deletion) -> Receipt:
        removed: dict[str, int] = {}
        for key in await self._keys(deletion):
            counts = await self._stores.database.run(remove_rows, self._stores.database, key, self._stop.is_set)
            removed = {table: removed.get(table, 0) + count for table, count in counts.items()}
        note = "the id itself is kept with the time of its deletion, so that late events can be refused"
        return {"state": "done", "removed": {**deletion.receipts["mysql"]["removed"], **removed}, "note": note}

    async def _redis(self, deletion: Deletion) -> Receipt:
        """Empty values of a newer revision, gone after a minute: a plain DEL would let a write-back that is under way
        bring the old rows back."""
        keys = await self._keys(deletion)
        revisions = await self._stores.database.run(self._revisions, keys)
        for key, revision in revisions.items():
            await self._stores.histories.replace(UserHistory(key, revision=revision, source="database"))
            held = await self._stores.redis.hget(history_key(key), "rev")
            if held is not None and int(held) == revision:
                await self._stores.redis.expire(history_key(key), TOMBSTONE_TTL_S)
            await self._profiles.bury(key, deletion.requested_at_us)
        await self._stores.database.run(self._clear_dirty, keys, deletion.requested_at_us)
        return {"state": "done", "keys": 2 * len(revisions)}

    def _revisions(self, keys: list[str]) -> dict[str, int]:
        """Of those that are still deleted: one that was PUT again has new values in Redis."""
        with self._stores.database.read() as connection:
            rows = connection.execute(
                select(user_state.c.user_key, user_state.c.revision).where(
                    user_state.c.user_key.in_(keys), user_state.c.deleted_at_us.is_not(None)
                )
            )
            return {row.user_key: row.revision for row in rows}

    def _clear_dirty(self, keys: list[str], marked_us: int) -> None:
        self._stores.database.transact(lambda connection: clear_dirty(connection, keys, marked_us))

    async def _latents(self, deletion: Deletion) -> Receipt:
        outcomes = [await self._stores.latents.delete(key) for key in await self._keys(deletion)]
        answered = [outcome for outcome in outcomes if outcome["state"] == "done"]
        return answered[0] if answered and len(answered) == len(outcomes) else outcomes[0]

    async def _batch_slates(self, deletion: Deletion) -> Receipt:
        """Frozen slates and sticky buckets; last-good scores and batch slates of every release that was ever active."""
        releases = await self._stores.database.run(self._releases)
        removed = 0
        for key in await self._keys(deletion):
            names = [f"silkrec:fs1:{key}", f"silkrec:sb1:{key}"]
            names += [f"silkrec:lg1:{release}:{key}" for release in releases]
            names += [f"silkrec:b1:{release}:{scene}:{key}" for release in releases for scene in self._stores.scenes]
            for start in range(0, len(names), 500):
                removed += int(await self._stores.redis.delete(*names[start : start + 500]))
        return {"state": "done", "removed": removed}

    def _releases(self) -> list[str]:
        newest = select(deployments.c.release).order_by(deployments.c.version.desc()).limit(RELEASES_MAX)
        with self._stores.database.read() as connection:
            return list(dict.fromkeys(connection.scalars(newest)))

    async def _logs(self, _deletion: Deletion) -> Receipt:
        return {"state": "not_kept", "note": "logs carry keyed hashes of ids only"}

    async def _models(self, deletion: Deletion) -> Receipt:
        def read() -> list[str]:
            with self._stores.database.read() as connection:
                return models_before(connection, deletion.requested_at_us)

        versions = await self._stores.database.run(read)
        note = "trained before this deletion; retrain or remove them to be rid of what they learned"
        return {"state": "named", "models": versions, "note": note}
