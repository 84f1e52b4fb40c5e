"""Units that meet no experiment, so that what a quarter's launches did together can be measured against them.

A holdout is written, started, stopped and reported as an experiment of two variants without settings: those held out,
and the rest. Its seed is its own, so membership is independent of every experiment's variants. It beats sticky buckets,
for a unit that still meets variants is no baseline; so begin it before the experiments it covers. What they ship while
it lasts is kept from the held out units too; what was shipped before is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.recommender.experiments.assignment import choose_variant, hash_unit
from services.recommender.experiments.definitions import Experiment, HoldOut, Status


@dataclass(frozen=True, slots=True)
class Holdout:
    """One of a definition that says what it holds out of."""

    definition: Experiment
    started_at_us: int = 0

    @property
    def scope(self) -> HoldOut:
        return self.definition.holdout or HoldOut()

    def covers(self, experiment: Experiment) -> bool:
        space = experiment.namespace
        return experiment.holdout is None and self.covers_namespace("" if space is None else space.key)

    def covers_namespace(self, namespace: str) -> bool:
        """Of an experiment; empty: it has none."""
        return self.scope.namespace is None or self.scope.namespace == namespace

    def holds(self, units: Mapping[str, str], now_us: int) -> bool:
        """Whether the unit {kind: id} is held out. Growing its weight only ever adds units."""
        value = units.get(self.definition.unit, "")
        if not value or self.definition.status is not Status.RUNNING or self.is_over(now_us):
            return False
        bucket = hash_unit(self.definition.hash_seed, value, self.definition.hash_version)
        return bucket is not None and choose_variant(bucket, self.definition.ranges) == 0

    def is_over(self, now_us: int) -> bool:
        return self.scope.ends_at_us is not None and now_us >= self.scope.ends_at_us


def holding(holdouts: Iterable[Holdout], units: Mapping[str, str], now_us: int) -> tuple[Holdout, ...]:
    """Those that hold this request's units out."""
    return tuple(one for one in holdouts if one.holds(units, now_us))
