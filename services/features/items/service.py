"""What the item routes do. The database is all there is to write: recommenders follow the catalogue by its revision."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from services.features.items import store
from services.features.items.content import ItemContent, ItemPatch
from services.features.items.index_content import ActiveIndexes, read_active
from services.features.items.index_status import IndexStatus, IndexStatuses
from services.features.items.store import StoredItem, Written
from shared.storage.database import Database

T = TypeVar("T")
Shown = tuple[StoredItem, IndexStatus]


def now_us() -> int:
    return time.time_ns() // 1000


class ItemService:
    """Async; blocking work goes to the database's threads. Raises DatabaseUnavailable, NotFound, ValidationFailed."""

    def __init__(self, database: Database, statuses: IndexStatuses, *, clock_us: Callable[[], int] = now_us) -> None:
        self._database = database
        self._statuses = statuses
        self._clock_us = clock_us

    async def put_many(self, writes: Sequence[tuple[str, ItemContent]]) -> Written:
        """One transaction."""
        at_us = self._clock_us()
        return await self._transact(lambda connection: store.put_items(connection, writes, at_us))

    async def put(self, item_id: str, content: ItemContent) -> tuple[Shown, bool]:
        """The item, and whether it is new."""
        written = await self.put_many([(item_id, content)])
        return (await self._shown(written.items))[0], bool(written.created)

    async def patch(self, item_id: str, patch: ItemPatch) -> Shown:
        at_us = self._clock_us()
        patched = await self._transact(lambda connection: store.patch_item(connection, item_id, patch, at_us))
        return (await self._shown([patched]))[0]

    async def delete(self, item_id: str) -> Shown:
        at_us = self._clock_us()
        deleted = await self._transact(lambda connection: store.delete_item(connection, item_id, at_us))
        return (await self._shown([deleted]))[0]

    async def get(self, item_id: str) -> Shown:
        found = await self._read(lambda connection: store.get_item(connection, item_id))
        return (await self._shown([found]))[0]

    async def page(self, after: str, limit: int) -> list[Shown]:
        found = await self._read(lambda connection: store.list_items(connection, after, limit))
        return await self._shown(found)

    async def _shown(self, found: Sequence[StoredItem]) -> list[Shown]:
        active = await self._read(read_active)
        return await self._database.run(self._with_statuses, found, active)

    def _with_statuses(self, found: Sequence[StoredItem], active: ActiveIndexes) -> list[Shown]:
        return list(zip(found, self._statuses.of(found, active, self._clock_us()), strict=True))

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        return await self._database.run(self._database.transact, work)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._database.read() as connection:
                return work(connection)

        return await self._database.run(read)
