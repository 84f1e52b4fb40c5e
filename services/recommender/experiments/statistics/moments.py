"""Sufficient statistics of one variant's units. Adding two that share no unit gives that of both.

A row is a unit (the id that was assigned), never an event: whoever meets a variant and does nothing is a zero, not
missing. Sums come from SQL; `of` takes arrays. `variance` is per unit: that of the mean is `variance / n`. Source:
GrowthBook's `gbstats.models.statistics`; the delta method for ratios: Deng, Knoblich, Lu 2018 (KDD), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import check_finite, refuse

Values = npt.NDArray[np.float64]

_ROUNDING = 1e-12
"""Share of Σx² below which a variance is what rounding left: 0.1 added a million times is off by 1e-12 of it."""


class Statistic(Protocol):
    """What a comparison needs of a variant."""

    @property
    def n(self) -> int:
        """Units."""
        ...

    @property
    def mean(self) -> float:
        """What is compared: adjusted where there is something to adjust by."""
        ...

    @property
    def unadjusted_mean(self) -> float:
        """What is shown, and what a relative lift is relative to."""
        ...

    @property
    def variance(self) -> float:
        """Per unit, of `mean`."""
        ...

    def scaled_variance(self, scale: float) -> float:
        """Per unit, of `scale` x the unadjusted mean - the adjustment."""
        ...


class _Unadjusted:
    """What is the same for all statistics without an adjustment."""

    @property
    def mean(self) -> float:
        raise NotImplementedError

    @property
    def variance(self) -> float:
        raise NotImplementedError

    @property
    def unadjusted_mean(self) -> float:
        return self.mean

    def scaled_variance(self, scale: float) -> float:
        return self.variance * scale**2


@dataclass(frozen=True, slots=True)
class Moments(_Unadjusted):
    """`n` units, `sum` = Σx, `sum_squares` = Σx²."""

    n: int
    sum: float
    sum_squares: float

    def __post_init__(self) -> None:
        _check_sums(self.n, self.sum, self.sum_squares)

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Self:
        x = np.asarray(values, np.float64)
        return cls(len(x), float(x.sum()), float(x @ x))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.sum + other.sum, self.sum_squares + other.sum_squares)

    @property
    def mean(self) -> float:
        return self.sum / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two units or equal ones."""
        if self.n < 2:
            return 0.0
        return above_rounding(self.sum_squares - self.sum**2 / self.n, self.sum_squares) / (self.n - 1)


@dataclass(frozen=True, slots=True)
class Proportion(_Unadjusted):
    """`sum` of `n` units did it. The variance is p(1 - p), as GrowthBook has it, not the unbiased one."""

    n: int
    sum: float

    def __post_init__(self) -> None:
        if not 0 <= self.sum <= self.n:
            raise refuse("sum", f"is {self.sum} of {self.n} units; a unit converts once, so count distinct units")
        _check_sums(self.n, self.sum, self.sum)

    def __add__(self, other: Proportion) -> Proportion:
        return Proportion(self.n + other.n, self.sum + other.sum)

    @property
    def sum_squares(self) -> float:
        return self.sum

    @property
    def mean(self) -> float:
        return self.sum / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        return self.mean * (1 - self.mean)


Mean = Moments | Proportion


@dataclass(frozen=True, slots=True)
class Ratio(_Unadjusted):
    """Σ numerator / Σ denominator over the same units (clicks over impressions), `sum_products` = Σ numerator x
    denominator.

    Impressions of one user resemble each other, so their binomial variance is far too small; with the user as the row
    it is right.
    """

    numerator: Mean
    denominator: Mean
    sum_products: float

    def __post_init__(self) -> None:
        check_finite("sum_products", self.sum_products)
        if self.numerator.n != self.denominator.n:
            found = f"has {self.numerator.n} units and the denominator {self.denominator.n}"
            raise refuse("numerator", f"{found}; sum both over the same units")

    @classmethod
    def of(cls, numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Self:
        """Both [units]."""
        y, d = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
        return cls(Moments.of(y), Moments.of(d), float(y @ d))

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(
            add(self.numerator, other.numerator),
            add(self.denominator, other.denominator),
            self.sum_products + other.sum_products,
        )

    @property
    def n(self) -> int:
        return self.numerator.n

    @property
    def mean(self) -> float:
        return self.numerator.sum / self.denominator.sum if self.denominator.sum else 0.0

    @property
    def variance(self) -> float:
        """(σ²_y - 2 R σ_yd + R² σ²_d) / d̄²."""
        if self.n < 2 or not self.denominator.sum:
            return 0.0
        spread = self.numerator.variance + self.mean**2 * self.denominator.variance
        shared = 2 * self.mean * covariance(self.numerator, self.denominator, self.sum_products)
        return above_rounding(spread - shared, spread) / self.denominator.mean**2


def add(one: Mean, other: Mean) -> Mean:
    """Of both sets of units; a mean of whatever kind when the kinds differ."""
    if isinstance(one, Proportion) and isinstance(other, Proportion):
        return one + other
    return Moments(one.n + other.n, one.sum + other.sum, one.sum_squares + other.sum_squares)


def covariance(one: Mean, other: Mean, sum_products: float) -> float:
    """Unbiased, per unit, from `sum_products` = Σxy."""
    return (sum_products - one.sum * other.sum / one.n) / (one.n - 1) if one.n > 1 else 0.0


def above_rounding(centred: float, raw: float) -> float:
    """`centred`, or 0 when it is no more than rounding of `raw` leaves: a chance p-value must not come of that."""
    return centred if centred > _ROUNDING * raw else 0.0


def _check_sums(n: int, total: float, sum_squares: float) -> None:
    if n < 0:
        raise refuse("n", f"is {n}; a count of units is 0 or more")
    check_finite("sum", total)
    check_finite("sum_squares", sum_squares)
    if n == 0 and (total or sum_squares):
        raise refuse("n", f"is 0 with a sum of {total}; count units, not events")
    if sum_squares * n < total**2 * (1 - 1e-9):
        raise refuse(
            "sum_squares", f"is {sum_squares} for {n} units that sum to {total}; that cannot be: square, then sum"
        )
