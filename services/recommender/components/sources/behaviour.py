from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.components.action_codes import positive_codes
from services.recommender.components.sources.searching import Searcher
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits
from shared.actions import ActionTable
from shared.contracts.history import Bool, History, Int32


@dataclass(frozen=True, slots=True)
class BehaviourSource:
    """Item to item from the newest items that the user met with a positive action."""

    searcher: Searcher
    positive: Bool
    recent: int
    name: str = "behaviour"
    reason: str = "because_of_your_activity"
    weight: float = 1.0
    needs_vector: bool = False
    personal: bool = True
    protected: bool = False

    @classmethod
    def of(cls, searcher: Searcher, actions: ActionTable, recent: int) -> BehaviourSource:
        return cls(searcher, positive_codes(actions), recent)

    async def retrieve(self, context: Context, k: int) -> Hits:
        index = context.snapshot.index
        if index is None:
            return no_hits()
        seeds = newest_items(context.user.history.rows, self.positive, self.recent)
        if len(seeds) == 0:
            return no_hits()
        return await self.searcher.neighbours(index, seeds, k)


def newest_items(history: History, positive: Bool, count: int) -> Int32:
    """[<= count] distinct items with a positive action, newest first."""
    items = history["item"][positive[history["action"] & 127]][::-1]
    _, first = np.unique(items, return_index=True)
    newest: Int32 = items[np.sort(first)[:count]].astype(np.int32)
    return newest
