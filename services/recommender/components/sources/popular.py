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
    """Popular items, then the newest ones, for short slates; a catalogue without events has only the newest."""

    name: str = "backfill"
    reason: str = "popular"
    weight: float = 0.0
    needs_vector: bool = False
    personal: bool = False
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        popular = context.snapshot.popular.top(k)
        newest = context.snapshot.fresh.item_index[: max(0, k - len(popular))]
        newest = newest[~np.isin(newest, popular.item_index)]
        return Hits(
            np.concatenate([popular.item_index, newest]).astype(np.int32),
            np.concatenate([popular.score, np.zeros(len(newest), np.float32)]).astype(np.float32),
        )
