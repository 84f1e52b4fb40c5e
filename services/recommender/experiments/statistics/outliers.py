"""Winsorising: the few units that earn half the revenue are capped, not dropped.

The cap comes from the units of all variants together, as in GrowthBook's percentile capping: a cap a variant would hide
the effect in the tail, and bias the test. Fix the percentile beforehand.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import refuse

Values = npt.NDArray[np.float64]


def cap_at(values: npt.ArrayLike, percentile: float, *, ignore_zeros: bool = False) -> float:
    """The `percentile` (0 to 1) of `values` [units of all variants]. `ignore_zeros`: of those that did anything,
    without which the 0.99 of a rare purchase is 0 and caps everything away."""
    if not 0 < percentile <= 1:
        raise refuse("percentile", f"is {percentile}; give a share above 0, at most 1, such as 0.999")
    x = np.asarray(values, np.float64)
    if ignore_zeros:
        x = x[x != 0]
    if not len(x):
        raise refuse("values", "hold no unit to take a percentile of; cap at a fixed value, or wait for data")
    return float(np.quantile(x, percentile))


def winsorise(values: npt.ArrayLike, upper: float, lower: float = -np.inf) -> Values:
    """[units], each moved to the nearest of `lower` and `upper` when outside."""
    if not lower <= upper:
        raise refuse("lower", f"is {lower}, above upper, {upper}; exchange them")
    return np.clip(np.asarray(values, np.float64), lower, upper)
