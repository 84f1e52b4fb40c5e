from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.pipeline.context import Context
from services.recommender.retrieval.hits import Hits, no_hits


@dataclass(frozen=True, slots=True)
class InputListSource:
    """The caller's own candidates, in the caller's order; there is no retrieval beside it."""

    name: str = "input_list"
    reason: str = "given"
    weight: float = 1.0
    needs_vector: bool = False
    personal: bool = True
    protected: bool = True

    async def retrieve(self, context: Context, _k: int) -> Hits:
        given = context.query.input_list
        return no_hits() if given is None else Hits(given, np.zeros(len(given), np.float32))
