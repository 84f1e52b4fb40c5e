from __future__ import annotations

from dataclasses import dataclass

from services.recommender.pipeline.context import Context
from shared.contracts.history import Bool, Int32


@dataclass(frozen=True, slots=True)
class ServableFilter:
    """Neither hidden nor deleted, and inside its availability: as of now, not as of the index. Asked twice, since a
    delete may arrive while the request ranks."""

    stage: str = "servable"
    late: bool = True

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        return context.snapshot.catalogue.servable(context.query.now_us, item_index)

    def rule(self, _context: Context) -> str:
        return "hidden, deleted or not available now"
