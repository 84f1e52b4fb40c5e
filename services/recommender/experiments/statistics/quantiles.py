"""Quantiles of events (latency p50, p95, p99) with users as what is drawn again.

Source: the cluster bootstrap, Davison and Hinkley 1997, section 3.8; percentile intervals. A user's requests resemble
each other, so drawing events would give intervals far too short. Weighted, not copied: events are sorted once, and a
draw is a count a user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import check_alpha, refuse
from services.recommender.experiments.statistics.effects import Problem

Values = npt.NDArray[np.float64]

FEWEST_USERS = 20
"""Below this a bootstrap over users draws the same few again and its interval is too short."""


@dataclass(frozen=True, slots=True)
class QuantileLift:
    """`control` and `treatment` as they are, the lift, its bootstrap error and its 1 - α percentile interval. With a
    `problem` the lift is NaN and the interval the whole line."""

    control: float
    treatment: float
    estimate: float
    standard_error: float
    low: float
    high: float
    problem: Problem | None = None


class Clustered:
    """Events of one variant: `values [events]`, `users [events]` any integers that tell the users apart."""

    def __init__(self, values: npt.ArrayLike, users: npt.ArrayLike) -> None:
        x, who = np.asarray(values, np.float64), np.asarray(users)
        if x.ndim != 1 or x.shape != who.shape:
            raise refuse("users", f"has shape {who.shape} for values of shape {x.shape}; give one user an event")
        if not np.isfinite(x).all():
            raise refuse("values", "hold NaN or infinite numbers; leave those events out")
        _, index = np.unique(who, return_inverse=True)
        self.users = int(index.max()) + 1 if len(index) else 0
        order = np.argsort(x, kind="stable")
        self._sorted, self._user = x[order], index[order].astype(np.int64)

    def quantile(self, q: float) -> float:
        """The smallest value with a share of at least `q` of the events at or below it; NaN without events."""
        if not self.users:
            return math.nan
        return float(self._sorted[_position(np.arange(1, len(self._sorted) + 1), q)])

    def resampled(self, qs: Sequence[float], random: np.random.Generator) -> list[float]:
        """The same of a draw of as many users, with replacement, for several quantiles."""
        drawn = np.bincount(random.integers(self.users, size=self.users), minlength=self.users)
        cumulative = np.cumsum(drawn[self._user])
        return [float(self._sorted[_position(cumulative, q)]) for q in qs]


def quantile_lift(
    control: Clustered,
    treatment: Clustered,
    q: float,
    *,
    relative: bool = True,
    alpha: float = 0.05,
    draws: int = 1_000,
    seed: int = 0,
) -> QuantileLift:
    """The lift of quantile `q` (0 to 1). `draws` x events of work: 1,000 draws of 100,000 events take about a
    second."""
    (lift,) = quantile_lifts(control, treatment, (q,), relative=relative, alpha=alpha, draws=draws, seed=seed)
    return lift


def quantile_lifts(
    control: Clustered,
    treatment: Clustered,
    qs: Sequence[float],
    *,
    relative: bool = True,
    alpha: float = 0.05,
    draws: int = 1_000,
    seed: int = 0,
) -> tuple[QuantileLift, ...]:
    """The same of several quantiles by the same draws, which are nearly all of the work."""
    check_alpha(alpha)
    for q in qs:
        if not 0 < q < 1:
            raise refuse("q", f"is {q}; give a quantile between 0 and 1, 0.95 for p95")
    if draws < 100:
        raise refuse("draws", f"is {draws}; an interval's ends need 100 or more, 1,000 is usual")
    a, b = [control.quantile(q) for q in qs], [treatment.quantile(q) for q in qs]
    problems = [_problem(control, treatment, zero=relative and one == 0) for one in a]
    if all(problems):
        return tuple(_unknown(*one) for one in zip(a, b, problems, strict=True))
    random = np.random.default_rng(seed)
    pairs = np.array([(control.resampled(qs, random), treatment.resampled(qs, random)) for _ in range(draws)])
    return tuple(
        _lift(a[place], b[place], pairs[:, :, place], relative=relative, alpha=alpha)
        if problem is None
        else _unknown(a[place], b[place], problem)
        for place, problem in enumerate(problems)
    )


def _unknown(a: float, b: float, problem: Problem | None) -> QuantileLift:
    return QuantileLift(a, b, math.nan, math.nan, -math.inf, math.inf, problem)


def _lift(a: float, b: float, pairs: Values, *, relative: bool, alpha: float) -> QuantileLift:
    """`pairs [draws, 2]`: control and treatment."""
    lifts = pairs[:, 1] - pairs[:, 0]
    if relative:
        with np.errstate(divide="ignore", invalid="ignore"):
            lifts = lifts / pairs[:, 0]
        lifts = lifts[np.isfinite(lifts)]  # draws whose control quantile is zero say nothing
    low, high = np.quantile(lifts, [alpha / 2, 1 - alpha / 2])
    estimate = (b - a) / a if relative else b - a
    return QuantileLift(a, b, estimate, float(lifts.std(ddof=1)), float(low), float(high))


def _problem(control: Clustered, treatment: Clustered, *, zero: bool) -> Problem | None:
    fewest = min(control.users, treatment.users)
    if fewest == 0:
        return Problem.NO_UNITS
    if fewest < FEWEST_USERS:
        return Problem.FEW_USERS
    return Problem.CONTROL_IS_ZERO if zero else None


def _position(cumulative: npt.NDArray[np.int64], q: float) -> int:
    """Of the first cumulative weight that reaches `q` of the whole."""
    return int(np.searchsorted(cumulative, q * cumulative[-1] * (1 - 1e-12)))
