"""CUPED: each unit's outcome less θ x what it did before it met the experiment.

Source: Deng, Xu, Kohavi, Walker 2013 (WSDM), eq. 4 and appendix B (ratios). θ is common to both variants, as in
GrowthBook: for means from the joint sums of the two (`compute_theta`), for ratios the sum of the two covariances over
the sum of the two variances (`compute_theta_regression_adjusted_ratio`). The adjusted mean is not centred, so it is
read as a difference only; `unadjusted_mean` is the one to show. A unit without a past counts 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import check_finite, refuse
from services.recommender.experiments.statistics.moments import (
    Mean,
    Moments,
    Ratio,
    Statistic,
    above_rounding,
    add,
    covariance,
)


class PairedStatistic(Protocol):
    """The same metric of the same units after (`post`) and before (`pre`) they met the experiment."""

    @property
    def n(self) -> int: ...

    @property
    def post(self) -> Statistic: ...

    @property
    def pre(self) -> Statistic: ...

    @property
    def covariance(self) -> float:
        """Per unit, of the two means."""
        ...


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean or proportion; `sum_products` = Σ post x pre."""

    post: Mean
    pre: Mean
    sum_products: float

    def __post_init__(self) -> None:
        check_finite("sum_products", self.sum_products)
        _check_same_units(self.post.n, self.pre.n)

    @classmethod
    def of(cls, post: npt.ArrayLike, pre: npt.ArrayLike) -> Self:
        """Both [units]."""
        y, x = np.asarray(post, np.float64), np.asarray(pre, np.float64)
        return cls(Moments.of(y), Moments.of(x), float(y @ x))

    def __add__(self, other: Paired) -> Paired:
        return Paired(add(self.post, other.post), add(self.pre, other.pre), self.sum_products + other.sum_products)

    @property
    def n(self) -> int:
        return self.post.n

    @property
    def covariance(self) -> float:
        return covariance(self.post, self.pre, self.sum_products)


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """A ratio; the four sums are Σ post x pre of numerators (n) and denominators (d), post first."""

    post: Ratio
    pre: Ratio
    sum_nn: float
    sum_nd: float
    sum_dn: float
    sum_dd: float

    def __post_init__(self) -> None:
        check_finite("sum of products", self.sum_nn, self.sum_nd, self.sum_dn, self.sum_dd)
        _check_same_units(self.post.n, self.pre.n)

    @classmethod
    def of(
        cls, numerator: npt.ArrayLike, denominator: npt.ArrayLike, pre_n: npt.ArrayLike, pre_d: npt.ArrayLike
    ) -> Self:
        """All [units]."""
        y, d = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
        x, e = np.asarray(pre_n, np.float64), np.asarray(pre_d, np.float64)
        sums = (float(one @ other) for one in (y, d) for other in (x, e))
        return cls(Ratio.of(y, d), Ratio.of(x, e), *sums)

    @property
    def n(self) -> int:
        return self.post.n

    @property
    def covariance(self) -> float:
        """Of the two ratios, by the delta method; 0 when a denominator is."""
        post, pre = self.post, self.pre
        if not post.denominator.sum or not pre.denominator.sum:
            return 0.0
        inner = (
            covariance(post.numerator, pre.numerator, self.sum_nn)
            - pre.mean * covariance(post.numerator, pre.denominator, self.sum_nd)
            - post.mean * covariance(post.denominator, pre.numerator, self.sum_dn)
            + post.mean * pre.mean * covariance(post.denominator, pre.denominator, self.sum_dd)
        )
        return inner / (post.denominator.mean * pre.denominator.mean)


@dataclass(frozen=True, slots=True)
class Adjusted:
    """`paired` less `theta` times its past: a `Statistic`."""

    paired: PairedStatistic
    theta: float

    @property
    def n(self) -> int:
        return self.paired.n

    @property
    def mean(self) -> float:
        return self.paired.post.mean - self.theta * self.paired.pre.mean

    @property
    def unadjusted_mean(self) -> float:
        return self.paired.post.mean

    @property
    def variance(self) -> float:
        return self.scaled_variance(1.0)

    def scaled_variance(self, scale: float) -> float:
        """Of `scale` x post - θ x pre: what the control adds to a relative lift, in which post stands twice."""
        paired, theta = self.paired, self.theta
        own = paired.post.variance * scale**2 + theta**2 * paired.pre.variance
        return above_rounding(own - 2 * theta * scale * paired.covariance, own)


P = TypeVar("P", Paired, PairedRatio)


def cuped(control: P, treatment: P) -> tuple[Statistic, Statistic]:
    """Both variants adjusted by their common θ. Without variance before or after, the outcomes as they are."""
    theta = _theta(control, treatment)
    if theta == 0:
        return control.post, treatment.post
    return Adjusted(control, theta), Adjusted(treatment, theta)


def variance_reduction(adjusted: Adjusted) -> float:
    """Share of the variance that the past explains, 0 to 1: the share of units that the experiment is spared."""
    before = adjusted.paired.post.variance
    return 1 - adjusted.variance / before if before > 0 else 0.0


def _theta(control: Paired | PairedRatio, treatment: Paired | PairedRatio) -> float:
    if isinstance(control, Paired) and isinstance(treatment, Paired):
        joint = control + treatment
        if joint.pre.variance == 0 or joint.post.variance == 0:
            return 0.0
        return joint.covariance / joint.pre.variance
    before = control.pre.variance + treatment.pre.variance
    return (control.covariance + treatment.covariance) / before if before > 0 else 0.0


def _check_same_units(post: int, pre: int) -> None:
    if post != pre:
        raise refuse("pre", f"has {pre} units and post {post}; a unit without a past is a zero in both of its sums")
