from __future__ import annotations

from dataclasses import dataclass, replace

from services.recommender.domain import ExplorationRecord
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Draft
from services.recommender.ranking.exploration import explore


@dataclass(frozen=True, slots=True)
class ExplorationSelector:
    """Fills the slots, ε of them at random; the last selector. Ranking a caller's own list draws nothing."""

    name: str = "exploration"

    def select(self, context: Context, draft: Draft) -> Draft:
        query = context.query
        epsilon = query.exploration if query.input_list is None else 0.0
        drawn = explore(draft.order, draft.pinned, epsilon, query.seed)
        record = None
        if epsilon > 0:
            record = ExplorationRecord(epsilon, query.seed, draft.ranked.batch.item_index[drawn.pool])
        notes = {int(row): "exploration" for row in drawn.rows[drawn.explored]}
        return replace(
            draft, rows=drawn.rows, propensity=drawn.propensity, notes=draft.noted(notes), exploration=record
        )
