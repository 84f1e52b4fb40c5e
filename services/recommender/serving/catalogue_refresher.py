"""Keeps the catalogue in memory level with the database, by revision; and the fresh table, which follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from services.recommender.catalogue import Catalogue, CatalogueRow
from services.recommender.fresh import FreshTable
from services.recommender.metrics import ServingMetrics
from services.recommender.serving.state import StateHolder
from services.recommender.serving.threads import Threads
from shared.errors import DatabaseUnavailable

# Rows become Python objects with the interpreter lock held: small chunks keep a bulk import from delaying requests.
CHUNK = 1000


class ItemReader(Protocol):
    """The part of FeatureReader that is needed; blocking."""

    def changed_items(self, since_revision: int, limit: int = 5000) -> Sequence[CatalogueRow]: ...


class CatalogueRefresher:
    """`run()` for ever in one task, the catalogue's only writer. `status`: `ok`, or what is wrong. `heard` gets every
    row that was applied, in a worker thread."""

    def __init__(
        self,
        *,
        database: Threads,
        reader: ItemReader,
        holder: StateHolder,
        metrics: ServingMetrics,
        refresh_s: float,
        heard: Callable[[Sequence[CatalogueRow]], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._reader = reader
        self._holder = holder
        self._metrics = metrics
        self._refresh_s = refresh_s
        self._heard = heard
        self._sleep = sleep
        self.status = "not read yet"
        self.read = asyncio.Event()

    @property
    def loaded(self) -> bool:
        """Read at least once, if only to learn that there is nothing yet; `read` is the event to wait for."""
        return self.read.is_set()

    async def run(self) -> None:
        while True:
            await self.refresh()
            await self._sleep(self._refresh_s)

    async def refresh(self) -> int:
        """Applies everything newer than what is known; how many rows that was. A dead database leaves all as it is."""
        catalogue = self._holder.current().catalogue
        applied = 0
        try:
            while rows := await self._database.run(self._reader.changed_items, catalogue.revision, CHUNK):
                await asyncio.to_thread(self._apply, catalogue, rows)
                applied += len(rows)
                if len(rows) < CHUNK:
                    break
        except DatabaseUnavailable as error:
            self.status = error.detail
            self._metrics.refresh_failures.labels("catalogue").inc()
        else:
            self.status = "ok"
            self.read.set()
        if applied:
            self._holder.swap(fresh=await asyncio.to_thread(FreshTable.from_catalogue, catalogue))
            self._metrics.catalogue_items.set(catalogue.count)
            self._metrics.catalogue_revision.set(catalogue.revision)
        return applied

    def _apply(self, catalogue: Catalogue, rows: Sequence[CatalogueRow]) -> None:
        catalogue.apply(rows)
        if self._heard is not None:
            self._heard(rows)
