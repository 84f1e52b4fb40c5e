from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    """For short slates: popular items, then the newest, then all others. A deeper answer begins as a shallow one."""

    name: str = "backfill"
    reason: str = "popular"
    weight: float = 0.0
    needs_vector: bool = False
    personal: bool = False
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        snapshot = context.snapshot
        popular = snapshot.popular.top(k)
        if len(popular) >= k:
            return popular
        others = np.ones(snapshot.catalogue.size, np.bool_)
        others[popular.item_index[popular.item_index < len(others)]] = False
        newest = snapshot.fresh.item_index
        newest = newest[others[newest]]
        others[newest] = False
        item_index = np.concatenate([popular.item_index, newest, np.flatnonzero(others)])[:k].astype(np.int32)
        score = np.zeros(len(item_index), np.float32)
        score[: len(popular)] = popular.score
        return Hits(item_index, score)
