from __future__ import annotations

from dataclasses import dataclass

from services.recommender.components.sources.searching import Searcher
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits


@dataclass(frozen=True, slots=True)
class UserVectorSource:
    """Items whose vectors are nearest to the user's, by inner product."""

    searcher: Searcher
    name: str = "user_vector"
    reason: str = "for_you"
    weight: float = 1.0
    needs_vector: bool = True
    personal: bool = True
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        index, vector = context.snapshot.index, context.user_vector
        if index is None or vector is None:
            return no_hits()
        return await self.searcher.run(index.rows_searched, index.by_user_vector, vector, k)
