"""ε-greedy slots, with the exact probability of every placement. The last step: nothing may reorder after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.recommender.ranking.promotions import FREE
from shared.contracts.history import Bool, Int64


@dataclass(frozen=True, slots=True)
class Drawn:
    """`rows [n]` placed candidates, `propensity [n]`, `explored [n]` (the slot was drawn), `pool [P]` at the start."""

    rows: Int64
    propensity: np.ndarray[tuple[int], np.dtype[np.float64]]
    explored: Bool
    pool: Int64


def explore(order: Int64, pinned: Int64, epsilon: float, seed: int) -> Drawn:
    """Fills the slots of `pinned [slots]` (FREE or a candidate) from `order [N]`, a permutation of the candidates.

    The pool begins as every candidate that is not pinned. A free slot takes, with probability 1 - ε, the best of the
    pool, and with ε one of the pool at random; what it takes leaves the pool. So given the slots before it, a candidate
    c of the pool is placed with probability (1 - ε)[c is best] + ε/|pool|, which is its propensity; a pinned one has 1.
    Slots beyond the candidates are left out. The same seed gives the same slate.
    """
    used = np.zeros(len(order), np.bool_)
    used[pinned[pinned != FREE]] = True
    pool = order[~used[order]]
    if epsilon <= 0:
        return _undrawn(pool, pinned)
    remaining = pool.tolist()
    random = np.random.default_rng(seed)
    rows: list[int] = []
    propensity: list[float] = []
    explored: list[bool] = []
    for fixed in pinned.tolist():
        if fixed != FREE:
            rows.append(fixed)
            propensity.append(1.0)
            explored.append(False)
        elif remaining:
            size = len(remaining)
            drawn = random.random() < epsilon
            place = int(random.integers(size)) if drawn else 0
            rows.append(remaining.pop(place))
            propensity.append(epsilon / size + (1.0 - epsilon if place == 0 else 0.0))
            explored.append(drawn)
    return Drawn(np.array(rows, np.int64), np.array(propensity, np.float64), np.array(explored, np.bool_), pool)


def _undrawn(pool: Int64, pinned: Int64) -> Drawn:
    """What `explore` does without chance, which is most requests: 0.01 ms instead of 0.07."""
    rows = pinned.copy()
    free = np.flatnonzero(rows == FREE)
    rows[free[: len(pool)]] = pool[: len(free)]
    rows = rows[rows != FREE]
    return Drawn(rows, np.ones(len(rows)), np.zeros(len(rows), np.bool_), pool)
