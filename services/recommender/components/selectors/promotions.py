from __future__ import annotations

from dataclasses import dataclass, replace

from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Draft
from services.recommender.ranking.promotions import FREE, Placement, place


@dataclass(frozen=True, slots=True)
class PromotionSelector:
    """Pins promoted candidates to their slots; a promotion that nothing matches is named."""

    name: str = "promotions"

    def select(self, context: Context, draft: Draft) -> Draft:
        query = context.query
        if not query.promotions:
            return draft
        catalogue, items = context.snapshot.catalogue, draft.ranked.batch.item_index
        user = context.user.profile
        placements = [
            Placement(
                promotion.filter.mask(catalogue, items, user, query.filter_values, query.now_us),
                promotion.position,
                promotion.percent,
            )
            for promotion in query.promotions
        ]
        for placement in placements:
            if not placement.matches.any():
                context.report.gave_up("promotions", "no_match", "not_promoted")
        pinned, by = place(draft.order, placements, len(draft.pinned))
        notes = {
            row: f"promotion:{query.promotions[number].name}"
            for row, number in zip(pinned.tolist(), by.tolist(), strict=True)
            if row != FREE
        }
        return replace(draft, pinned=pinned, notes=draft.noted(notes))
