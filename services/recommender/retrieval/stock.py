"""The catalogue as an index sees it: which items may be found, and which may only be started from.

An item is found unless it is deleted, hidden or past its availability: those come back by a change of the item, and
the next index knows. An item whose availability begins later is found, because nothing but time changes it; until then
the pipeline's servable filter keeps it back. Items known by events alone are found too: they are servable.

What is not found stays a starting point: a sold-out item still says what its buyers like, and its page asks for
similar ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.contracts.history import Bool


class ItemRow(Protocol):
    """Of `services.features.reader.ItemRow`, what an index looks at."""

    @property
    def item_index(self) -> int: ...
    @property
    def is_hidden(self) -> bool: ...
    @property
    def deleted(self) -> bool: ...
    @property
    def available_until_us(self) -> int | None: ...
    @property
    def revision(self) -> int: ...


class ItemReader(Protocol):
    """Of `services.features.reader.FeatureReader`."""

    def changed_items(self, since_revision: int, limit: int = 5000, /) -> Sequence[ItemRow]: ...


@dataclass(frozen=True, slots=True)
class Stock:
    """`exists [size]`, `found [size]` by item_index; `catalogue_version`: the highest revision that was read."""

    exists: Bool
    found: Bool
    catalogue_version: int

    @property
    def size(self) -> int:
        return len(self.exists)


def read_stock(reader: ItemReader, now_us: int) -> Stock:
    """The whole catalogue, page by page. Raises DatabaseUnavailable."""
    exists, found = np.zeros(1024, np.bool_), np.zeros(1024, np.bool_)
    revision = size = 0
    while page := reader.changed_items(revision):
        revision = page[-1].revision
        place = np.array([row.item_index for row in page])
        size = max(size, int(place.max()) + 1)
        if size > len(exists):
            more = max(size, 2 * len(exists)) - len(exists)
            exists, found = (np.concatenate([column, np.zeros(more, np.bool_)]) for column in (exists, found))
        exists[place] = True
        found[place] = [_is_found(row, now_us) for row in page]
    return Stock(exists[:size].copy(), found[:size].copy(), revision)


def _is_found(row: ItemRow, now_us: int) -> bool:
    ended = row.available_until_us is not None and row.available_until_us <= now_us
    return not (row.deleted or row.is_hidden or ended)
