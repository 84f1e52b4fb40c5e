from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.components.action_codes import seen_codes
from services.recommender.pipeline.context import Context
from shared.actions import ActionTable
from shared.contracts.history import Bool, Int32


@dataclass(frozen=True, slots=True)
class SeenFilter:
    """Items that the user already met with an action that `marks_seen`, where the scene hides those."""

    seen: Bool
    stage: str = "seen"
    late: bool = False

    @classmethod
    def of(cls, actions: ActionTable) -> SeenFilter:
        return cls(seen_codes(actions))

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        rows = context.user.history.rows
        if not context.query.hide_seen or len(rows) == 0:
            return None
        met = rows["item"][self.seen[rows["action"] & 127]]
        allowed: Bool = ~np.isin(item_index, met)
        return allowed

    def rule(self, _context: Context) -> str:
        return "hide_seen"
