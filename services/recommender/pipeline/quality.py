"""How many candidates ranking can afford: shrinks under latency, recovers slowly (additive increase, multiplicative
decrease; Chiu and Jain 1989)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

WINDOW = 64
EVERY = 16
_SLOW, _FAST = 0.9, 0.6
_DOWN, _UP = 0.8, 0.05
LEAST = 0.1


@dataclass(slots=True)
class QualityFactor:
    """`factor` in [0.1, 1] multiplies the candidate count of every request of this process.

    Learned from the p95 of rank time over its budget, in the last 64 requests: above 0.9 the factor falls by a fifth,
    below 0.6 it grows by 0.05, looked at every 16 requests. Requests with less than half of `usual_s` are not counted:
    one caller with a tiny deadline must not take candidates from all others.
    """

    usual_s: float
    factor: float = 1.0
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _since: int = 0

    def limit(self, candidates: int) -> int:
        return max(1, math.ceil(candidates * self.factor))

    def observe(self, rank_s: float, budget_s: float) -> None:
        """`rank_s`: the time that ranking took, or its whole budget when it ran out of it."""
        if budget_s < 0.5 * self.usual_s:
            return
        self._ratios.append(rank_s / budget_s)
        self._since += 1
        if self._since < EVERY:
            return
        self._since = 0
        p95 = sorted(self._ratios)[math.ceil(0.95 * len(self._ratios)) - 1]
        if p95 > _SLOW:
            self.factor = max(LEAST, self.factor * _DOWN)
            # What was measured belongs to the old count; judged again it would shrink the new one for nothing.
            self._ratios.clear()
        elif p95 < _FAST:
            self.factor = min(1.0, self.factor + _UP)
