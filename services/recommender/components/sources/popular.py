from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.components.most_wanted import most_wanted
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits


@dataclass(frozen=True, slots=True)
class PopularSource:
    """What everybody acts on. It weighs half: it fills, and breaks ties between personal sources."""

    name: str = "popular"
    reason: str = "popular"
    weight: float = 0.5
    needs_vector: bool = False
    personal: bool = False
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        return context.snapshot.popular.top(k)


@dataclass(frozen=True, slots=True)
class BackfillSource:
    """For short slates: whatever there is, most wanted first."""

    name: str = "backfill"
    reason: str = "popular"
    weight: float = 0.0
    needs_vector: bool = False
    personal: bool = False
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        item_index = most_wanted(context.snapshot, k)
        return Hits(item_index, np.zeros(len(item_index), np.float32))
