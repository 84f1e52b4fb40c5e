"""Which row of the item table an item_index has: its own, one given later by its content, or the unknown one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FARTHEST = 1 << 24
"""Places beyond the vocabulary that the map may span: 128 MB. item_index is allocated without gaps."""


class ItemRows:
    """Rows 0 to `vocabulary` - 1 are the model's items, row `vocabulary` the unknown one, `extra` rows follow."""

    def __init__(self, vocabulary: int, extra: int) -> None:
        self._vocabulary = vocabulary
        self._extra = extra
        self._later = np.empty(0, np.int64)
        self._given = 0

    @property
    def given(self) -> int:
        """Items that got a row after training."""
        return self._given

    def give(self, item_index: int) -> int | None:
        """A row of its own for an item beyond the vocabulary. None: it has one already, belongs to the model, or all
        rows are given."""
        place = item_index - self._vocabulary
        if not 0 <= place < _FARTHEST or self._given >= self._extra:
            return None
        if place >= len(self._later):
            grown = np.full(max(2 * len(self._later), place + 1, 1024), self._vocabulary, np.int64)
            grown[: len(self._later)] = self._later
            self._later = grown
        if self._later[place] != self._vocabulary:
            return None
        self._given += 1
        row = self._vocabulary + self._given
        self._later[place] = row
        return row

    def rows_of(self, item: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Table rows of item_index [N]."""
        wide = item.astype(np.int64)
        known = (wide >= 0) & (wide < self._vocabulary)
        rows = np.where(known, wide, self._vocabulary)
        if self._given:
            place = wide - self._vocabulary
            later = (place >= 0) & (place < len(self._later))
            rows[later] = self._later[place[later]]
        return rows
