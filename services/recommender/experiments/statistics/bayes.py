"""Chance to win, from a normal posterior of the lift.

Source: GrowthBook's `EffectBayesianABTest`: the lift is normal with the delta method's variance, the prior normal on
the same scale, flat unless `proper`. It is no licence to peek: with a flat prior, stopping at 95 % errs as often as
stopping at the first p < 0.05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from services.recommender.experiments.refusals import check_alpha, check_positive
from services.recommender.experiments.statistics.effects import Problem, lift
from services.recommender.experiments.statistics.moments import Statistic


@dataclass(frozen=True, slots=True)
class Prior:
    """Of the lift, on the scale that is asked for. Not `proper`: flat, and `mean` and `variance` count for nothing."""

    mean: float = 0.0
    variance: float = 1.0
    proper: bool = False

    def __post_init__(self) -> None:
        check_positive("variance", self.variance)


FLAT = Prior()


@dataclass(frozen=True, slots=True)
class Posterior:
    """`chance_to_win` over the control, `[low, high]` credible; `risk_of_control`, `risk_of_treatment`: the lift that
    is lost on average by choosing it. With a `problem`: a chance of one half, and the whole line."""

    estimate: float
    standard_error: float
    low: float
    high: float
    chance_to_win: float
    risk_of_control: float
    risk_of_treatment: float
    problem: Problem | None = None


def posterior(
    control: Statistic,
    treatment: Statistic,
    *,
    relative: bool = True,
    lower_is_better: bool = False,
    prior: Prior = FLAT,
    alpha: float = 0.05,
) -> Posterior:
    """`lower_is_better` turns round who wins, not the lift's sign."""
    check_alpha(alpha)
    found = lift(control, treatment, relative=relative)
    if found.problem is not None:
        return Posterior(math.nan, math.nan, -math.inf, math.inf, 0.5, math.nan, math.nan, found.problem)
    precision, weighted = 1 / found.variance, found.estimate / found.variance
    if prior.proper:
        precision, weighted = precision + 1 / prior.variance, weighted + prior.mean / prior.variance
    mean, error = weighted / precision, math.sqrt(1 / precision)
    reach = -float(special.ndtri(alpha / 2)) * error
    low, high = mean - reach, mean + reach
    above = float(special.ndtr(mean / error))
    gain, loss = _expected_excess(mean, error), _expected_excess(-mean, error)
    if lower_is_better:
        return Posterior(mean, error, low, high, 1 - above, loss, gain)
    return Posterior(mean, error, low, high, above, gain, loss)


def _expected_excess(mean: float, error: float) -> float:
    """E[max(X, 0)] of X ~ N(mean, error²)."""
    z = mean / error
    return mean * float(special.ndtr(z)) + error * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
