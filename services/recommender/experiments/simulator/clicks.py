"""The click model: P(click at place k) = examination(k) x attraction(user, item) x freshness(item, items above).

    examination  (k + 1)^-decay, places from 0. The position-based model: Richardson, Dominowska, Ragno 2007 (WWW);
                 Craswell, Zoeter, Taylor, Ramsey 2008 (WSDM), section 3.
    attraction   logistic(base + gain x mean liking of the item's categories + the item's own appeal)
    freshness    1 - tiredness x mean Jaccard likeness of its categories to those of the items above: a slate of
                 near-duplicates is clicked less, so diversity has a true effect, for better (variety) and for worse
                 (what is pulled up is liked less)

Clicks of a slate are independent given its items and their order, so expected clicks are a plain sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from services.recommender.experiments.refusals import check_finite, refuse
from services.recommender.experiments.simulator.users import NO_CATEGORY, liking, uniform

Values = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Item:
    item_id: str
    categories: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickModel:
    """`base` and `gain` in logits: an item is clicked by 8 % of those who look when nothing of it is liked, by 62 %
    when everything is. `appeal`: standard deviation between items, in logits. `tiredness` from 0 to 1: the share of
    attraction that a perfect duplicate loses. `purchase`: probability after a click.

    `taste(user_id, category)` from 0 to 1 and `worth(item_id)` in standard deviations replace what is drawn from the
    seed, where something is known of real users and items.
    """

    seed: int
    base: float = -2.5
    gain: float = 3.0
    appeal: float = 0.5
    decay: float = 0.7
    tiredness: float = 0.6
    purchase: float = 0.1
    taste: Callable[[str, str], float] | None = None
    worth: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        check_finite("base", self.base, self.gain, self.appeal, self.decay)
        if self.decay < 0 or self.appeal < 0:
            raise refuse("decay", f"is {self.decay} and appeal {self.appeal}; both are 0 or more")
        if not (0 <= self.tiredness <= 1 and 0 <= self.purchase <= 1):
            raise refuse("tiredness", f"is {self.tiredness} and purchase {self.purchase}; both lie from 0 to 1")

    def probabilities(self, user_id: str, slate: Sequence[Item]) -> Values:
        """[items of the slate], in its order."""
        count = len(slate)
        examination = np.arange(1, count + 1, dtype=np.float64) ** -self.decay
        logits = np.array([self._logit(user_id, item) for item in slate], np.float64)
        fresh = np.array([self._freshness(slate, place) for place in range(count)], np.float64)
        return np.asarray(examination * special.expit(logits) * fresh, np.float64)

    def draw(self, probabilities: Values, number: int) -> tuple[Bools, Bools]:
        """`(clicked, purchased)` [items]: chance of its own for request `number`, whatever ran before it."""
        random = np.random.default_rng((self.seed, number))
        clicked = random.random(len(probabilities)) < probabilities
        return clicked, clicked & (random.random(len(probabilities)) < self.purchase)

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers, for reports."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("taste", "worth")}

    def _logit(self, user_id: str, item: Item) -> float:
        likings = [self._liking(user_id, category) for category in sorted(item.categories)]
        liked = math.fsum(likings) / len(likings) if likings else NO_CATEGORY
        return self.base + self.gain * liked + self.appeal * self._worth(item.item_id)

    def _liking(self, user_id: str, category: str) -> float:
        return liking(self.seed, user_id, category) if self.taste is None else self.taste(user_id, category)

    def _worth(self, item_id: str) -> float:
        """A uniform number of standard deviation 1: no tails, so no item is clicked by everybody."""
        if self.worth is not None:
            return self.worth(item_id)
        return math.sqrt(12) * (uniform(self.seed, "appeal", item_id) - 0.5)

    def _freshness(self, slate: Sequence[Item], place: int) -> float:
        if place == 0:
            return 1.0
        alike = math.fsum(likeness(slate[place], above) for above in slate[:place]) / place
        return 1.0 - self.tiredness * alike


def likeness(one: Item, other: Item) -> float:
    """Jaccard's, of the categories; 0 when neither has any."""
    either = len(one.categories | other.categories)
    return len(one.categories & other.categories) / either if either else 0.0
