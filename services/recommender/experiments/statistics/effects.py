"""The lift of a treatment over the control, and how uncertain it is.

Relative lift (b - a) / a by the delta method: variance (s²_b / n_b + s²_a (b/a)² / n_a) / a², which is GrowthBook's
`frequentist_variance`, and with CUPED its later `variance_relative_cuped`: a stands in the numerator adjusted and in
the denominator as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from services.recommender.experiments.statistics.moments import Statistic


class Problem(StrEnum):
    """Why there is no answer."""

    NO_UNITS = "a variant has no units yet"
    NO_VARIANCE = "all units of a variant are equal, so nothing says how far chance reaches"
    CONTROL_IS_ZERO = "the control is zero, so no lift can be relative to it"
    FEW_USERS = "a variant has fewer than 20 users, too few to draw from again"


@dataclass(frozen=True, slots=True)
class Lift:
    """`estimate` as a fraction of the control when relative, else in the metric's unit. With a `problem`: NaN."""

    estimate: float
    variance: float
    problem: Problem | None = None

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """`[low, high]` covers the truth with the test's confidence. With a `problem` nothing is known: estimate NaN, p 1,
    and the interval is the whole line (GrowthBook gives 0 and [0, 0] there, which reads like a precise zero)."""

    estimate: float
    standard_error: float
    low: float
    high: float
    p_value: float
    problem: Problem | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def lift(control: Statistic, treatment: Statistic, *, relative: bool = True) -> Lift:
    """Divides by the control's mean with its sign: relative to a negative mean, better comes out negative."""
    problem = _problem(control, treatment, relative=relative)
    if problem is not None:
        return Lift(math.nan, math.nan, problem)
    difference = treatment.mean - control.mean
    if not relative:
        return Lift(difference, treatment.variance / treatment.n + control.variance / control.n)
    base = control.unadjusted_mean
    scale = treatment.unadjusted_mean / base
    variance = treatment.variance / treatment.n + control.scaled_variance(scale) / control.n
    return Lift(difference / base, variance / base**2)


def unknown(problem: Problem) -> Estimate:
    return Estimate(math.nan, math.nan, -math.inf, math.inf, 1.0, problem)


def _problem(control: Statistic, treatment: Statistic, *, relative: bool) -> Problem | None:
    if control.n == 0 or treatment.n == 0:
        return Problem.NO_UNITS
    if relative and control.unadjusted_mean == 0:
        return Problem.CONTROL_IS_ZERO
    if control.variance <= 0 or treatment.variance <= 0:
        return Problem.NO_VARIANCE
    return None
