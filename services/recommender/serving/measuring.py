"""Diversity and novelty of a served slate, from what the request's own snapshot has in memory."""

from __future__ import annotations

from services.recommender.components.hydrators.item_vectors import category_vectors
from services.recommender.experiments.measures import NoveltyTable, intra_list_diversity
from services.recommender.popular import PopularTable
from services.recommender.serving.state import ServingState
from shared.contracts.history import Int32


class SlateMeasures:
    """One a process; keeps the novelty table of the newest popular table."""

    def __init__(self) -> None:
        self._popular: PopularTable | None = None
        self._novelty: NoveltyTable | None = None

    def of(self, item_index: Int32, state: ServingState) -> dict[str, float | None]:
        """`{ild, novelty}`. Vectors are the index's, or categories without one, as the diversity selector sees them."""
        vectors = (
            category_vectors(state.catalogue, item_index) if state.index is None else state.index.vectors(item_index)
        )
        return {"ild": intra_list_diversity(vectors), "novelty": self._table(state.popular).mean(item_index)}

    def _table(self, popular: PopularTable) -> NoveltyTable:
        if self._novelty is None or self._popular is not popular:
            self._popular, self._novelty = popular, NoveltyTable(popular.item_index, popular.score)
        return self._novelty
