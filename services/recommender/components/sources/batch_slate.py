from __future__ import annotations

from dataclasses import dataclass

from services.recommender.components.stored import batch_slate_key, unpack_batch_slate
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits


@dataclass(frozen=True, slots=True)
class BatchSlateSource:
    """The slate that a batch job computed for this user, scene and release."""

    name: str = "batch"
    reason: str = "for_you"
    weight: float = 1.0
    needs_vector: bool = False
    personal: bool = True
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        query = context.query
        key = batch_slate_key(context.snapshot.release_name, query.scene, query.user_key)
        slate = unpack_batch_slate(context.user.extras.get(key))
        return no_hits() if slate is None else Hits(slate.item_index[:k], slate.score[:k])
