"""Catalogue: one writer thread, any number of readers, no locks on the reading side.

How a reader never sees half a change: each version of an item's row gets a slot of its own at the end of the columns;
it is written whole, and only then does `slot_of[item_index]` point to it, one aligned int32 store. When arrays are
full, all that a reader needs is copied into a new View, published by one assignment; readers that hold the old View
keep reading old, complete rows. Slots left behind by updates are packed away once they outnumber the living
(dictionaries included), so repeated updates cost no more than twice the memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from services.recommender.catalogue.columns import (
    MISSING_TIME,
    ArrayColumn,
    Column,
    StringsColumn,
    TextColumn,
    make_column,
)
from services.recommender.catalogue.rows import CatalogueRow
from shared.contracts.history import Bool, Int32, Int64
from shared.schema import FieldType, Schema

_FIRST_CAPACITY = 1024
CORE_FIELDS: Mapping[str, FieldType] = {
    "item_type": "string",
    "title": "string",
    "categories": "strings",
    "is_hidden": "boolean",
    "available_from": "timestamp",
    "available_until": "timestamp",
    "price": "number",
    "currency": "string",
    "created_at": "timestamp",
}
_BLOCKED = "_blocked"  # hidden or deleted
_KNOWN = "_known"
_READ: Mapping[str, Callable[[CatalogueRow], Any]] = {
    "item_type": attrgetter("item_type"),
    "title": attrgetter("title"),
    "categories": attrgetter("categories"),
    "is_hidden": attrgetter("is_hidden"),
    "available_from": attrgetter("available_from_us"),
    "available_until": attrgetter("available_until_us"),
    "price": attrgetter("price"),
    "currency": attrgetter("currency"),
    "created_at": attrgetter("created_at_us"),
    _BLOCKED: lambda row: row.is_hidden or row.deleted,
    _KNOWN: attrgetter("known"),
}


@dataclass(frozen=True, slots=True)
class View:
    """A consistent picture. Resolve `slots(item_index)` once a request and read every column with them.

    `slot_of [capacity + 1]` int32; its last entry is always 0, so clipping sends indices beyond it to the missing row.
    """

    slot_of: Int32
    columns: Mapping[str, Column]

    def slots(self, item_index: Int32) -> Int64:
        return self.slot_of.take(item_index, mode="clip").astype(np.int64)

    def array(self, name: str) -> npt.NDArray[Any]:
        return cast("ArrayColumn", self.columns[name]).values

    def servable(self, slots: Int64, now_us: int) -> Bool:
        begins, ends = self.array("available_from")[slots], self.array("available_until")[slots]
        # A missing start is the smallest int64, so it needs no test of its own.
        allowed: Bool = (
            (self.array(_BLOCKED)[slots] == 0) & (begins <= now_us) & ((ends > now_us) | (ends == MISSING_TIME))
        )
        return allowed

    def known(self, slots: Int64) -> Bool:
        result: Bool = self.array(_KNOWN)[slots] == 1
        return result


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """A field of one View, by item_index."""

    view: View
    column: Column

    @property
    def kind(self) -> FieldType:
        return self.column.kind

    def take(self, item_index: Int32) -> npt.NDArray[Any]:
        """[N] values: float64 (NaN), int64 µs (MISSING_TIME), int8 (-1) or int32 codes (-1). Lists: use `flat`."""
        return self.column.values[self.view.slots(item_index)]  # type: ignore[attr-defined,no-any-return]

    def flat(self, item_index: Int32) -> tuple[Int32, Int64]:
        """String lists: `(codes [T], owner [T])`, owner being the position in `item_index`."""
        return cast("StringsColumn", self.column).flat(self.view.slots(item_index))

    @property
    def strings(self) -> Sequence[str]:
        """What the codes stand for."""
        return self.column.dictionary.strings  # type: ignore[attr-defined,no-any-return]


class Catalogue:
    """`size`: highest item_index + 1; `revision`: the highest applied, to ask the reader for what came after."""

    def __init__(self, schema: Schema) -> None:
        self._kinds: dict[str, FieldType] = {
            **CORE_FIELDS,
            **{name: declared.type for name, declared in schema.item_fields.items()},
        }
        columns: dict[str, Column] = {name: make_column(kind, 1) for name, kind in self._kinds.items()}
        columns["title"] = TextColumn([None])
        columns[_BLOCKED] = ArrayColumn.empty("boolean", 1)
        columns[_KNOWN] = ArrayColumn.empty("boolean", 1)
        self._view = View(np.zeros(1, np.int32), columns)
        self._capacity = 1
        self._used = 1
        self._item_ids: list[str | None] = []
        self._index_of: dict[str, int] = {}
        self._declared = tuple(schema.item_fields)
        self._writer = threading.Lock()
        self.size = 0
        self.count = 0
        self.revision = 0

    # ---- reading: any thread

    def view(self) -> View:
        return self._view

    def index_of(self, item_id: str) -> int | None:
        return self._index_of.get(item_id)

    def item_id(self, item_index: int) -> str:
        """Raises KeyError for an index that no applied row had."""
        item_id = self._item_ids[item_index] if 0 <= item_index < len(self._item_ids) else None
        if item_id is None:
            raise KeyError(item_index)
        return item_id

    def servable(self, now_us: int, item_index: Int32 | None = None) -> Bool:
        """[N] of `item_index`, or [size]: neither hidden nor deleted, and inside its availability. Items known by
        events alone are servable; items not applied yet are not, since nobody could name them."""
        view = self._view
        return view.servable(view.slots(self._all() if item_index is None else item_index), now_us)

    def known(self, item_index: Int32 | None = None) -> Bool:
        """[N] or [size]: content was PUT."""
        view = self._view
        return view.known(view.slots(self._all() if item_index is None else item_index))

    def column(self, name: str) -> BoundColumn:
        """Core or declared field. Raises KeyError for others. Strings are codes, except `title` (see `properties`)."""
        if name == "category":
            name = "categories"
        if name not in self._kinds:
            raise KeyError(name)
        view = self._view
        return BoundColumn(view, view.columns[name])

    @property
    def property_names(self) -> frozenset[str]:
        """What `return_properties` may ask for."""
        return frozenset((*self._kinds, "item_id"))

    def properties(self, item_index: int, names: Sequence[str]) -> dict[str, Any]:
        """The named fields as the API shows them: times RFC 3339, missing None. Other names are left out."""
        view = self._view
        slot = int(view.slots(np.array([item_index], np.int32))[0])
        found = {name: view.columns[name].get(slot) for name in names if name in self._kinds}
        if "item_id" in names and 0 <= item_index < len(self._item_ids):
            found["item_id"] = self._item_ids[item_index]
        return found

    # ---- writing: one thread at a time

    def apply(self, rows: Iterable[CatalogueRow]) -> None:
        """Adds and replaces rows; the same rows again change nothing that a reader could see."""
        batch = list(rows)
        if not batch:
            return
        with self._writer:
            item_index = np.fromiter((row.item_index for row in batch), np.int64, len(batch))
            self._name(batch)
            self._reserve(self._used + len(batch), int(item_index.max()) + 1)
            self._write(batch)
            slot_of = self._view.slot_of
            slot_of[item_index] = np.arange(self._used, self._used + len(batch), dtype=np.int32)
            self._used += len(batch)
            self.size = max(self.size, int(item_index.max()) + 1)
            self.count = len(self._index_of)
            self.revision = max(self.revision, *(row.revision for row in batch))
            if self._used - self.count > max(self.count, _FIRST_CAPACITY):
                self._pack()

    def _all(self) -> Int32:
        return np.arange(self.size, dtype=np.int32)

    def _name(self, batch: Sequence[CatalogueRow]) -> None:
        missing = max(row.item_index for row in batch) + 1 - len(self._item_ids)
        if missing > 0:
            self._item_ids.extend([None] * missing)
        for row in batch:
            self._item_ids[row.item_index] = row.item_id
            self._index_of[row.item_id] = row.item_index

    def _reserve(self, slots: int, indices: int) -> None:
        """Room for `slots` slots and `indices` item indices, or a new View that has it."""
        view, columns = self._view, self._view.columns
        if slots > self._capacity:
            self._capacity = max(slots, 2 * self._capacity, _FIRST_CAPACITY)
            columns = {name: column.grown(self._capacity) for name, column in columns.items()}
        if indices >= len(view.slot_of):
            slot_of = np.zeros(max(indices, 2 * len(view.slot_of), _FIRST_CAPACITY) + 1, np.int32)
            slot_of[: len(view.slot_of)] = view.slot_of
        elif columns is not view.columns:
            slot_of = view.slot_of.copy()  # the old View must not learn slots that its own columns lack
        else:
            return
        self._view = View(slot_of, columns)

    def _write(self, batch: Sequence[CatalogueRow]) -> None:
        view = self._view
        changed: dict[str, Column] = {}
        for name, column in view.columns.items():
            read = _READ.get(name)
            values = [read(row) for row in batch] if read else [row.properties.get(name) for row in batch]
            after = column.put(self._used, values)
            if after is not column:
                changed[name] = after
        if changed:
            self._view = replace(view, slot_of=view.slot_of.copy(), columns={**view.columns, **changed})

    def _pack(self) -> None:
        view = self._view
        living = np.flatnonzero(view.slot_of)
        slots = np.concatenate([[0], view.slot_of[living]]).astype(np.int64)
        self._used = len(slots)
        self._capacity = max(_FIRST_CAPACITY, self._used + self._used // 4)
        slot_of = np.zeros_like(view.slot_of)
        slot_of[living] = np.arange(1, self._used, dtype=np.int32)
        self._view = View(slot_of, {name: c.packed(slots, self._capacity) for name, c in view.columns.items()})
