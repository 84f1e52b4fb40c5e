"""The fresh source: the newest items that have content, whatever their events say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.catalogue import MISSING_TIME, Catalogue
from services.recommender.retrieval.hits import Hits
from shared.contracts.history import Int32, Int64

_DAY_US = 86_400_000_000
KEPT = 5000


@dataclass(frozen=True, slots=True)
class FreshTable:
    """Immutable; rebuilt after the catalogue's revision moved. The newest 5,000 known items, newest first."""

    item_index: Int32
    created_at_us: Int64
    revision: int

    @classmethod
    def from_catalogue(cls, catalogue: Catalogue) -> FreshTable:
        revision = catalogue.revision
        everything = np.arange(catalogue.size, dtype=np.int32)
        created = catalogue.column("created_at").take(everything)
        listed = np.flatnonzero((created != MISSING_TIME) & catalogue.known(everything))
        if len(listed) > KEPT:
            listed = listed[np.argpartition(-created[listed], KEPT)[:KEPT]]
        order = listed[np.lexsort((listed, -created[listed]))]
        return cls(order.astype(np.int32), created[order], revision)

    def top(self, k: int, now_us: int, days: float, catalogue: Catalogue) -> Hits:
        """The `k` newest servable items of the last `days`; score falls from 1 (now) to 0 (`days` old)."""
        span = days * _DAY_US
        begin = int(np.searchsorted(-self.created_at_us, -now_us))  # items dated in the future are not out yet
        end = int(np.searchsorted(-self.created_at_us, -(now_us - int(span)), side="right"))
        chosen = np.empty(0, np.int64)
        # Nearly all new items are servable: looking at twice as many as wanted is nearly always enough.
        for first in range(begin, end, max(1, 2 * k)):
            servable = catalogue.servable(now_us, self.item_index[first : min(end, first + 2 * k)])
            chosen = np.concatenate([chosen, first + np.flatnonzero(servable)])
            if len(chosen) >= k:
                break
        chosen = chosen[:k]
        age = now_us - self.created_at_us[chosen]
        return Hits(self.item_index[chosen], (1.0 - age / span).astype(np.float32))
