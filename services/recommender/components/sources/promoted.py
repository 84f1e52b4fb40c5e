from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.components.most_wanted import most_wanted
from services.recommender.domain import Promotion
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits
from shared.contracts.history import Int32

# A plain filter over 20,000 items takes about 1 ms. What it takes is bounded, because anybody with a client key may
# write filters: longer ones and further promotions are looked for less deep.
DEPTH = 20_000
PLAIN_CHARACTERS = 100
# Most promotions find all that they need among the first ones: 0.1 ms.
FIRST = 2000
# Filters and pages take some of what was found; so many more than slots are proposed.
SPARE = 20


@dataclass(frozen=True, slots=True)
class PromotedSource:
    """Items that match a promotion, most wanted first, so that a promotion finds something to place. They have no
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
        depth = DEPTH * PLAIN_CHARACTERS // max(PLAIN_CHARACTERS, characters)
        found = np.concatenate([_matching(context, promotion, depth) for promotion in promotions])
        _, first = np.unique(found, return_index=True)
        chosen = found[np.sort(first)][:k]
        return Hits(chosen, np.zeros(len(chosen), np.float32))


def _matching(context: Context, promotion: Promotion, depth: int) -> Int32:
    query, snapshot = context.query, context.snapshot
    share = 1.0 if promotion.percent is None else query.count * promotion.percent / 100
    wanted = SPARE + 2 * int(share + 1)
    found, seen = np.empty(0, np.int32), 0
    for end in sorted({min(FIRST, depth), depth}):
        pool = most_wanted(snapshot, end)[seen:]
        user, values = context.user.profile, query.filter_values
        allowed = promotion.filter.mask(snapshot.catalogue, pool, user, values, query.now_us)
        found = np.concatenate([found, pool[allowed]])
        seen += len(pool)
        if len(found) >= wanted or seen < end:
            break
    return found[:wanted]
