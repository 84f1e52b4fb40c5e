from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.domain import Promotion
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits
from shared.contracts.history import Int32

# A plain filter over 20,000 items takes about 1 ms. Larger catalogues, and filters of many tests, are searched among
# popular and new items only, as far down as the same time reaches: anybody with a client key may write filters.
WHOLE_CATALOGUE = 20_000
PLAIN_CHARACTERS = 100
LEAST = 200


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
        characters = sum(len(promotion.filter.text) for promotion in promotions)
        pool = _pool(context, max(LEAST, WHOLE_CATALOGUE * PLAIN_CHARACTERS // max(PLAIN_CHARACTERS, characters)))
        each = max(1, k // len(promotions))
        found = np.concatenate([_matching(context, promotion, pool, each) for promotion in promotions])
        _, first = np.unique(found, return_index=True)
        chosen = found[np.sort(first)]
        return Hits(chosen, np.zeros(len(chosen), np.float32))


def _pool(context: Context, size: int) -> Int32:
    """The whole catalogue, or about `size` items: half of them popular, half new."""
    snapshot = context.snapshot
    if snapshot.catalogue.size <= size:
        return np.arange(snapshot.catalogue.size, dtype=np.int32)
    listed = np.concatenate([snapshot.popular.top(size // 2).item_index, snapshot.fresh.item_index[: size // 2]])
    return np.unique(listed).astype(np.int32)


def _matching(context: Context, promotion: Promotion, pool: Int32, count: int) -> Int32:
    """The filter first: sorting all 20,000 by popularity took 1.4 ms, sorting what matches 0.1 ms."""
    query, catalogue = context.query, context.snapshot.catalogue
    allowed = promotion.filter.mask(catalogue, pool, context.user.profile, query.filter_values, query.now_us)
    matching = pool[allowed]
    return matching[np.argsort(-context.snapshot.popular.scores(matching), kind="stable")[:count]]
