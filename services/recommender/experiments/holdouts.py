"""Units that meet no experiment, so that what a quarter's launches did together can be measured against them.

A holdout has its own seed: membership is independent of every experiment's variants. It beats sticky buckets, for a
unit that still meets variants is no baseline; so begin it before the experiments it covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.recommender.experiments.assignment import hash_unit
from services.recommender.experiments.refusals import refuse


@dataclass(frozen=True, slots=True)
class Holdout:
    """`share` (0 to 1) of the units of kind `unit` are held out; `experiments` empty: of all experiments."""

    key: str
    share: float
    unit: str = "user"
    experiments: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.key:
            raise refuse("key", "is empty; name the holdout")
        if not 0 <= self.share <= 1:
            raise refuse("share", f"is {self.share}; give the share of units to hold out, from 0 to 1 (0.05 is usual)")

    def covers(self, experiment_key: str) -> bool:
        return not self.experiments or experiment_key in self.experiments

    def holds(self, value: str) -> bool:
        """Whether the unit with this id is held out. Growing the share only ever adds units."""
        place = hash_unit("holdout__" + self.key, value, 2)
        return place is not None and place < self.share


def holding(holdouts: Iterable[Holdout], experiment_key: str, unit: str, value: str) -> Holdout | None:
    """The first holdout that keeps this unit out of the experiment."""
    for holdout in holdouts:
        if holdout.unit == unit and holdout.covers(experiment_key) and holdout.holds(value):
            return holdout
    return None
