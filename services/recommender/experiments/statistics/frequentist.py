"""Welch's t-test on the lift, for a number of units fixed beforehand; and of one sample against zero.

Source: Welch 1947 with Satterthwaite's degrees of freedom; GrowthBook's `gbstats.frequentist.tests`. Whoever looks
every day and stops at the first p < 0.05 errs about 30 % of the time: `sequential` is for that.
"""

from __future__ import annotations

import math
from enum import StrEnum

from scipy import special

from services.recommender.experiments.refusals import check_alpha
from services.recommender.experiments.statistics.effects import Estimate, Problem, lift, unknown
from services.recommender.experiments.statistics.moments import Statistic


class Side(StrEnum):
    """What is to be shown about the lift."""

    TWO = "differs"
    GREATER = "greater"
    LESS = "less"


def welch(
    control: Statistic,
    treatment: Statistic,
    *,
    relative: bool = True,
    alpha: float = 0.05,
    test_value: float = 0.0,
    side: Side = Side.TWO,
) -> Estimate:
    """The lift, its 1 - `alpha` interval, and p against `test_value`. One-sided: the interval is open on one side.

    One-sided "less" ends at estimate + width; gbstats 0.8.0 subtracts the width there.
    """
    check_alpha(alpha)
    found = lift(control, treatment, relative=relative)
    if found.problem is not None:
        return unknown(found.problem)
    freedom = _freedom(control, treatment)
    return _tested(found.estimate, found.standard_error, freedom, alpha, test_value, side)


def one_sample(statistic: Statistic, *, alpha: float = 0.05, test_value: float = 0.0) -> Estimate:
    """The mean of a statistic with units as rows, against `test_value`, two-sided. For paired data such as
    interleaving."""
    check_alpha(alpha)
    if statistic.n == 0:
        return unknown(Problem.NO_UNITS)
    if statistic.variance <= 0:
        return unknown(Problem.NO_VARIANCE)
    error = math.sqrt(statistic.variance / statistic.n)
    return _tested(statistic.mean, error, statistic.n - 1, alpha, test_value, Side.TWO)


def _freedom(control: Statistic, treatment: Statistic) -> float:
    """Satterthwaite's, of the absolute difference: GrowthBook keeps it for the relative one. A proportion can have
    variance in a single unit of none; then there is one degree."""
    a, b = control.variance / control.n, treatment.variance / treatment.n
    return (a + b) ** 2 / (a**2 / max(control.n - 1, 1) + b**2 / max(treatment.n - 1, 1))


def _tested(estimate: float, error: float, freedom: float, alpha: float, test_value: float, side: Side) -> Estimate:
    """By `scipy.special`: `scipy.stats` takes 160 µs for the two numbers, a whole test here 10; a page has hundreds."""
    distance = (estimate - test_value) / error
    if side is Side.TWO:
        width = -float(special.stdtrit(freedom, alpha / 2)) * error
        p_value = 2 * float(special.stdtr(freedom, -abs(distance)))  # the lower tail: 1 - cdf loses a small p
        return Estimate(estimate, error, estimate - width, estimate + width, p_value)
    width = -float(special.stdtrit(freedom, alpha)) * error
    if side is Side.GREATER:
        return Estimate(estimate, error, estimate - width, math.inf, float(special.stdtr(freedom, -distance)))
    return Estimate(estimate, error, -math.inf, estimate + width, float(special.stdtr(freedom, distance)))
