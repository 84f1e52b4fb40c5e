"""Sample-ratio mismatch: units did not split as the weights say, so something beside the variant decides who is
counted.

Source: Fabijan et al. 2019 (KDD), chi-squared at 0.001; GrowthBook's `check_srm`. Unlike gbstats 0.8.0, variants of
weight zero are left out of the degrees of freedom and of the total, and units found in them are an alarm of their own:
nobody can get there by assignment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import special

from services.recommender.experiments.refusals import refuse

THRESHOLD = 0.001
FEWEST_EXPECTED = 5
"""Units a variant should have before the chi-squared approximation is worth anything (Cochran 1952)."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """`expected` {variant: units} by weight; `leaks` {variant of weight zero or unknown name: units found there}."""

    p_value: float
    expected: Mapping[str, float]
    leaks: Mapping[str, int]
    enough: bool
    threshold: float = THRESHOLD

    @property
    def mismatch(self) -> bool:
        return self.enough and self.p_value < self.threshold

    @property
    def alarm(self) -> bool:
        """Whether the results must not be read."""
        return self.mismatch or bool(self.leaks)


def sample_ratio(units: Mapping[str, int], weights: Mapping[str, float], threshold: float = THRESHOLD) -> SampleRatio:
    """`units` {variant: distinct units exposed}, `weights` of any scale. Killed variants: give them weight zero and
    only the units of after, else the past split is held against the present one."""
    _check(units, weights)
    kept = [key for key, weight in weights.items() if weight > 0]
    leaks = {key: count for key, count in units.items() if count > 0 and key not in kept}
    total = sum(units.get(key, 0) for key in kept)
    scale = math.fsum(weights[key] for key in kept)
    expected = {key: total * weights[key] / scale for key in kept}
    if total == 0 or len(kept) < 2:
        return SampleRatio(1.0, expected, leaks, enough=False, threshold=threshold)
    distance = math.fsum((units.get(key, 0) - mean) ** 2 / mean for key, mean in expected.items())
    p_value = float(special.chdtrc(len(kept) - 1, distance))
    return SampleRatio(p_value, expected, leaks, min(expected.values()) >= FEWEST_EXPECTED, threshold)


def _check(units: Mapping[str, int], weights: Mapping[str, float]) -> None:
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise refuse("weights", f"are {dict(weights)}; give each variant 0 or more, and some above 0")
    if any(count < 0 for count in units.values()):
        raise refuse("units", f"are {dict(units)}; a count is 0 or more")
