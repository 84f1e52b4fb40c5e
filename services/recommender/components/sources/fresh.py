from __future__ import annotations

from dataclasses import dataclass

from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits


@dataclass(frozen=True, slots=True)
class FreshSource:
    """The newest items of the last `days`, so that an item without events can be met at all."""

    days: float
    name: str = "fresh"
    reason: str = "new"
    weight: float = 0.3
    needs_vector: bool = False
    personal: bool = False
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        snapshot = context.snapshot
        return snapshot.fresh.top(k, context.query.now_us, self.days, snapshot.catalogue)
