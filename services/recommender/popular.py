"""The popular source: decayed action counts, ranked once a refresh and read by slicing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from services.recommender.catalogue import Catalogue
from services.recommender.retrieval.hits import Hits, no_hits
from shared.actions import ActionTable
from shared.contracts.history import Float32, Int32, Int64


class DailyColumns(Protocol):
    """Events by day (since 1970), item and action code: columns [n] of `services.features.reader.DailyActions`."""

    @property
    def occurred_day(self) -> npt.NDArray[Any]: ...
    @property
    def item_index(self) -> npt.NDArray[Any]: ...
    @property
    def action(self) -> npt.NDArray[Any]: ...
    @property
    def events(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class PopularTable:
    """Immutable. `item_index [n]` by falling `score [n]`; equal scores by item_index, so slates repeat exactly."""

    item_index: Int32
    score: Float32
    _by_category: Mapping[str, Int64]

    @classmethod
    def from_daily(
        cls, daily: DailyColumns, actions: ActionTable, half_life_days: float, catalogue: Catalogue | None = None
    ) -> PopularTable:
        """score = sum over days and actions of events x action.popularity x 0.5^(age / half_life).

        Age counts from the newest day of the data, not from today: a catalogue whose events stopped keeps its ranking
        (MovieLens ends in 1998, and with ages from today every score would be 0). `catalogue`: for `top(category=…)`.
        """
        if len(daily.item_index) == 0:
            return cls(np.empty(0, np.int32), np.empty(0, np.float32), {})
        weights = np.zeros(128)
        for action in actions:
            weights[action.code] = action.popularity
        code = np.clip(daily.action, 0, 127)
        days = np.asarray(daily.occurred_day, np.float64)
        amount = weights[code] * daily.events * 0.5 ** ((days.max() - days) / half_life_days)
        items = np.asarray(daily.item_index, np.int64)
        total = np.bincount(items, amount)
        listed = np.flatnonzero(total > 0)
        order = listed[np.argsort(-total[listed], kind="stable")].astype(np.int32)
        return cls(order, total[order].astype(np.float32), _categories(order, catalogue))

    def top(self, k: int, category: str | None = None) -> Hits:
        """The `k` best, of one category if given; empty when nothing is known of it."""
        if category is None:
            return Hits(self.item_index[:k], self.score[:k])
        place = self._by_category.get(category)
        return no_hits() if place is None else Hits(self.item_index[place[:k]], self.score[place[:k]])

    def scores(self, item_index: Int32) -> Float32:
        """[N] popularity of given items; 0 for those without events."""
        size = int(self.item_index.max(initial=-1)) + 1
        table = np.zeros(size + 1, np.float32)
        table[self.item_index] = self.score
        return table.take(item_index, mode="clip") * (np.asarray(item_index) < size)

    def __len__(self) -> int:
        return len(self.item_index)


def _categories(order: Int32, catalogue: Catalogue | None) -> Mapping[str, Int64]:
    """Category to positions in `order`, rising."""
    if catalogue is None:
        return {}
    column = catalogue.column("categories")
    codes, owner = column.flat(order)
    by_code = np.argsort(codes, kind="stable")
    codes, owner = codes[by_code], owner[by_code]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    parts = np.split(owner, starts[1:]) if len(starts) else []
    names = column.strings
    return {names[code]: part for code, part in zip(codes[starts].tolist(), parts, strict=True)}
