"""Tells every engine what items are that came after its model was trained, so that they are scored by their content.

The catalogue says what changed; each engine says which items its model lacks. An engine keeps what it was told in
memory only, so one that restarted, or serves another model, is told everything again.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from services.recommender.catalogue import CatalogueRow
from shared.contracts.inference import UPSERT_MOST, NewItem, Upserted
from shared.errors import SilkrecError
from shared.observability.logging import get_logger

KEPT_ITEMS = 16_384
"""As many new items as a model has room for. New items have the highest item_index: these are kept."""
PROBE_S = 5.0
"""How soon an engine that restarted is noticed."""
_BYTES = 1 << 20
"""Of JSON a call, beside one item: the door takes 4 MiB."""
_log = get_logger(__name__)


class Engines(Protocol):
    """The part of `services.inference.client.EngineControl` that is needed."""

    @property
    def targets(self) -> tuple[str, ...]: ...

    async def upsert_items(self, target: str, items: Sequence[NewItem]) -> Upserted: ...


@dataclass(frozen=True, slots=True)
class _Told:
    """An engine as it was last seen. It was told of the changes up to number `upto`."""

    instance: str
    model_version: str
    vocabulary: int
    upto: int
    probe_at: float

    def knows_as(self, answer: Upserted) -> bool:
        return (self.instance, self.model_version) == (answer.instance, answer.model_version)


class NewItems:
    """`heard` from the catalogue's thread; `run()` for ever in one task. `fields`: the declared feature fields."""

    def __init__(
        self,
        engines: Engines,
        fields: Collection[str],
        *,
        refresh_s: float,
        kept: int = KEPT_ITEMS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engines = engines
        self._fields = tuple(fields)
        self._refresh_s = refresh_s
        self._kept = kept
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._items: dict[int, tuple[int, NewItem]] = {}
        self._changes = 0
        self._told: dict[str, _Told] = {}
        self._failing: set[str] = set()

    def heard(self, rows: Sequence[CatalogueRow]) -> None:
        """Items that are deleted, or only seen in events, have no content to tell."""
        with self._lock:
            for row in rows:
                self._items.pop(row.item_index, None)
                if row.known and not row.deleted:
                    self._changes += 1
                    self._items[row.item_index] = self._changes, self._item(row)
            if len(self._items) > 2 * self._kept:
                self._items = {index: self._items[index] for index in heapq.nlargest(self._kept, self._items)}

    async def run(self) -> None:
        while True:
            await self.tell()
            await self._sleep(self._refresh_s)

    async def tell(self) -> None:
        """One round: every engine hears what it lacks."""
        await asyncio.gather(*(self._tell(target) for target in self._engines.targets))

    async def _tell(self, target: str) -> None:
        """An engine that cannot be told now is told in a later round."""
        told = self._told.get(target)
        if told is not None and told.upto == self._changes and self._clock() < told.probe_at:
            return
        try:
            await self._level(target, told)
        except SilkrecError as error:
            if target not in self._failing:
                _log.info("an engine cannot be told of new items now", target=target, detail=error.detail)
            self._failing.add(target)
        else:
            self._failing.discard(target)

    async def _level(self, target: str, told: _Told | None) -> None:
        answer = await self._engines.upsert_items(target, ())
        if told is None or not told.knows_as(answer):
            told = self._seen(answer, 0)
        upto, items = self._lacking(told)
        for chunk in _chunks(items):
            answer = await self._engines.upsert_items(target, chunk)
            if not told.knows_as(answer):
                break  # another process or model took over: from the beginning in the next round
        self._told[target] = self._seen(answer, upto if told.knows_as(answer) else 0)

    def _seen(self, answer: Upserted, upto: int) -> _Told:
        return _Told(answer.instance, answer.model_version, answer.vocabulary, upto, self._clock() + PROBE_S)

    def _lacking(self, told: _Told) -> tuple[int, list[NewItem]]:
        """The newest change, and items that changed since, are none of the model's and have room: oldest first."""
        with self._lock:
            indices = [i for i, (at, _) in self._items.items() if at > told.upto and i >= told.vocabulary]
            chosen = sorted(heapq.nlargest(self._kept, indices))
            return self._changes, [self._items[index][1] for index in chosen]

    def _item(self, row: CatalogueRow) -> NewItem:
        properties = {name: row.properties[name] for name in self._fields if row.properties.get(name) is not None}
        return NewItem(row.item_index, row.title, tuple(row.categories), properties)


def _chunks(items: Sequence[NewItem]) -> Iterator[list[NewItem]]:
    chunk: list[NewItem] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(orjson.dumps(item))
        if len(chunk) == UPSERT_MOST or size >= _BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
