"""Which slots promotions take, and with which of the matching candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.contracts.history import Bool, Int64

FREE = -1


@dataclass(frozen=True, slots=True)
class Placement:
    """`matches [N]` over candidates; either one slot at `position`, or `percent` (0 to 100) of all slots."""

    matches: Bool
    position: int | None = None
    percent: float | None = None


def place(order: Int64, placements: Sequence[Placement], slots: int) -> tuple[Int64, Int64]:
    """`(pinned [slots], by [slots])`: the candidate of each slot and the placement that put it there; FREE elsewhere.

    Positions go first, in their order; a taken slot moves the promotion to the next free one. Percent then fills until
    that share of slots (rounded half up) holds its items, spread evenly. Each takes its best matching candidate in
    `order [N]`; no candidate is pinned twice; without a match a slot stays free.
    """
    pinned = np.full(slots, FREE, np.int64)
    by = np.full(slots, FREE, np.int64)
    used = np.zeros(len(order), np.bool_)
    numbered = sorted(enumerate(placements), key=lambda pair: pair[1].position is None)
    for number, placement in numbered:
        ranked = order[placement.matches[order]]
        for slot in _wanted(placement, slots):
            free = _next_free(pinned, slot)
            best = ranked[~used[ranked]]
            if free is None or len(best) == 0:
                break
            pinned[free], by[free] = best[0], number
            used[best[0]] = True
    return pinned, by


def _wanted(placement: Placement, slots: int) -> list[int]:
    if placement.position is not None:
        return [placement.position] if 0 <= placement.position < slots else []
    share = int(slots * (placement.percent or 0.0) / 100 + 0.5)
    return [number * slots // share for number in range(min(share, slots))]


def _next_free(pinned: Int64, slot: int) -> int | None:
    """At or after `slot`, else before it."""
    free = np.flatnonzero(pinned == FREE)
    if len(free) == 0:
        return None
    after = free[free >= slot]
    return int(after[0] if len(after) else free[-1])
