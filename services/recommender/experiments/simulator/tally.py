"""What one variant's users were served, and what comes of it: exactly, by the model, and as it was drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from services.recommender.experiments.simulator.clicks import Bools, Values
from services.recommender.experiments.statistics.moments import Ratio


@dataclass(slots=True)
class UserTotals:
    """`expected` clicks: the sum of the model's probabilities, no chance in it."""

    impressions: int = 0
    expected: float = 0.0
    clicks: int = 0
    purchases: int = 0


@dataclass(slots=True)
class Tally:
    """Of one variant. Empty slates count as slates without impressions."""

    slates: int = 0
    empty: int = 0
    users: dict[str, UserTotals] = field(default_factory=dict)

    def add(self, user_id: str, probabilities: Values, clicked: Bools, purchased: Bools) -> None:
        totals = self.users.setdefault(user_id, UserTotals())
        self.slates += 1
        self.empty += not len(probabilities)
        totals.impressions += len(probabilities)
        totals.expected += float(probabilities.sum())
        totals.clicks += int(clicked.sum())
        totals.purchases += int(purchased.sum())

    @property
    def impressions(self) -> int:
        return sum(one.impressions for one in self.users.values())

    @property
    def clicks(self) -> int:
        return sum(one.clicks for one in self.users.values())

    @property
    def purchases(self) -> int:
        return sum(one.purchases for one in self.users.values())

    def expected_ratio(self) -> Ratio:
        """Expected clicks over impressions, a user a row."""
        return self._ratio([one.expected for one in self._sorted()])

    def drawn_ratio(self) -> Ratio:
        """Drawn clicks over impressions, a user a row."""
        return self._ratio([float(one.clicks) for one in self._sorted()])

    def _ratio(self, numerators: list[float]) -> Ratio:
        denominators = np.array([one.impressions for one in self._sorted()], np.float64)
        return Ratio.of(np.array(numerators, np.float64), denominators)

    def _sorted(self) -> list[UserTotals]:
        """By user and not by arrival: sums of doubles in another order are other numbers, and a seed has one result."""
        return [self.users[user_id] for user_id in sorted(self.users)]
