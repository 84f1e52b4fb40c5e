from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.domain import Promotion
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits
from shared.contracts.history import Int32

# A filter over 20,000 items takes about 1 ms; larger catalogues are searched among popular and new ones only.
WHOLE_CATALOGUE = 20_000
DEPTH = 5000


@dataclass(frozen=True, slots=True)
class PromotedSource:
    """Items that match a promotion, most popular first, so that a promotion finds something to place. They have no
    say in the order (weight 0) and survive the cut."""

    name: str = "promoted"
    reason: str = "promoted"
    weight: float = 0.0
    needs_vector: bool = False
    personal: bool = False
    protected: bool = True

    async def retrieve(self, context: Context, k: int) -> Hits:
        promotions = context.query.promotions
        if not promotions:
            return no_hits()
        pool = _pool(context)
        each = max(1, k // len(promotions))
        found = np.concatenate([_matching(context, promotion, pool, each) for promotion in promotions])
        _, first = np.unique(found, return_index=True)
        chosen = found[np.sort(first)]
        return Hits(chosen, np.zeros(len(chosen), np.float32))


def _pool(context: Context) -> Int32:
    snapshot = context.snapshot
    if snapshot.catalogue.size <= WHOLE_CATALOGUE:
        return np.arange(snapshot.catalogue.size, dtype=np.int32)
    listed = np.concatenate([snapshot.popular.top(DEPTH).item_index, snapshot.fresh.item_index])
    return np.unique(listed).astype(np.int32)


def _matching(context: Context, promotion: Promotion, pool: Int32, count: int) -> Int32:
    """The filter first: sorting all 20,000 by popularity took 1.4 ms, sorting what matches 0.1 ms."""
    query, catalogue = context.query, context.snapshot.catalogue
    allowed = promotion.filter.mask(catalogue, pool, context.user.profile, query.filter_values, query.now_us)
    matching = pool[allowed]
    return matching[np.argsort(-context.snapshot.popular.scores(matching), kind="stable")[:count]]
