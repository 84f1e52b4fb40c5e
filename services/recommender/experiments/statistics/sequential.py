"""Intervals that hold at every look at once: peek daily, stop whenever, and still err at most α of the time.

Source: asymptotic confidence sequences, Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2023 (arXiv 2103.06476v7), eq. 9
for the interval, eq. 161 for ρ, eq. 155 for p; as GrowthBook's `SequentialTwoSidedTTest`. N* (`tuning`) is the number
of units at which the interval is tightest compared with a fixed one; fix it before the start, as changing it later
breaks the promise. Asymptotic: begin to look at a few hundred units a variant.
"""

from __future__ import annotations

import math

from services.recommender.experiments.refusals import check_alpha, check_positive
from services.recommender.experiments.statistics.effects import Estimate, lift, unknown
from services.recommender.experiments.statistics.moments import Statistic

DEFAULT_TUNING = 5_000
"""N*, GrowthBook's default. Set it to the units at which you expect to decide."""


def confidence_sequence(
    control: Statistic,
    treatment: Statistic,
    *,
    relative: bool = True,
    alpha: float = 0.05,
    test_value: float = 0.0,
    tuning: float = DEFAULT_TUNING,
) -> Estimate:
    """Two-sided. `p_value` is always valid: below α at any look with probability at most α when there is no effect."""
    check_alpha(alpha)
    check_positive("tuning", tuning)
    found = lift(control, treatment, relative=relative)
    if found.problem is not None:
        return unknown(found.problem)
    units = control.n + treatment.n
    width = critical_value(units, alpha, tuning) * found.standard_error
    weight = units * _rho_squared(alpha, tuning)
    # In logs, for the e-value of a plain effect in a large experiment overflows.
    squared = (found.estimate - test_value) ** 2 / found.variance
    log_evidence = weight / (weight + 1) * squared / 2 - math.log(weight + 1) / 2
    p_value = min(math.exp(-log_evidence), 1.0)
    return Estimate(found.estimate, found.standard_error, found.estimate - width, found.estimate + width, p_value)


def critical_value(units: float, alpha: float, tuning: float = DEFAULT_TUNING) -> float:
    """How many standard errors the interval reaches at so many units of both variants; a fixed test's is 1.96."""
    weight = units * _rho_squared(alpha, tuning)
    return math.sqrt(2 * (weight + 1) / weight * math.log(math.sqrt(weight + 1) / alpha))


def _rho_squared(alpha: float, tuning: float) -> float:
    return (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuning
