from __future__ import annotations

from dataclasses import dataclass

from services.recommender.components.sources.searching import Searcher
from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits


@dataclass(frozen=True, slots=True)
class ContextItemsSource:
    """Neighbours of the page's own items (the product shown, the basket). They weigh more than the user's past: a
    visitor on a product page is there for that product."""

    searcher: Searcher
    name: str = "context_items"
    reason: str = "goes_with_this_page"
    weight: float = 1.5
    needs_vector: bool = False
    personal: bool = True
    protected: bool = False

    async def retrieve(self, context: Context, k: int) -> Hits:
        index, seeds = context.snapshot.index, context.query.context_items
        if index is None or len(seeds) == 0:
            return no_hits()
        return await self.searcher.neighbours(index, seeds, k)
