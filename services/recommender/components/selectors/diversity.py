from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from services.recommender.components.columns import SHORTLIST, VECTOR
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Draft
from services.recommender.ranking.diversity import mmr


@dataclass(frozen=True, slots=True)
class DiversitySelector:
    """MMR over the shortlist; who is behind it stays behind it."""

    name: str = "diversity"

    def select(self, context: Context, draft: Draft) -> Draft:
        diversity, vectors = context.query.diversity, draft.ranked.batch.features.get(VECTOR)
        if diversity <= 0 or vectors is None:
            return draft
        short = draft.order[:SHORTLIST]
        chosen = short[mmr(draft.ranked.score[short], vectors[short], diversity, len(draft.pinned))]
        return replace(draft, order=np.concatenate([chosen, draft.order[SHORTLIST:]]))
