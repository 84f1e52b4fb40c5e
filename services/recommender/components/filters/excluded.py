from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.pipeline.context import Context
from shared.contracts.history import Bool, Int32


@dataclass(frozen=True, slots=True)
class ExcludedFilter:
    """`exclude_item_ids`, and what earlier pages showed; not the page's own items either, unless they are ranked."""

    stage: str = "excluded"
    late: bool = False

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        query = context.query
        unwanted = query.exclude
        if query.input_list is None:
            unwanted = np.concatenate([unwanted, query.context_items])
        if len(unwanted) == 0:
            return None
        allowed: Bool = ~np.isin(item_index, unwanted)
        return allowed

    def rule(self, _context: Context) -> str:
        return "exclude_item_ids, item_ids or an earlier page"
