"""What a variant that never ran would have earned, from slots that another policy filled with known propensities.

A row is one filled slot: what it earned (`reward`), the probability with which it was filled so given the slots before
(`propensity`, as logged), and the probability with which the new policy would have done the same (`target`).
w = target / propensity.

    IPS    Σ w r / n          unbiased; Horvitz, Thompson 1952
    SNIPS  Σ w r / Σ w        a little bias, far less variance; Swaminathan, Joachims 2015 (NeurIPS), eq. 6
    DR     Σ [v + w (r - q)] / n   unbiased if either w or q is right; Dudík, Langford, Li 2011 (ICML), eq. 2

Rows of one user or slate depend on each other: give `clusters`, and the variance is that of their sums. Overlap is
looked at first: an estimate that rests on a few rows is refused with the reason, as its interval would not cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from services.recommender.experiments.refusals import check_alpha, refuse

Values = npt.NDArray[np.float64]

LEAST_EFFECTIVE = 100.0
"""Effective rows below which the normal interval is not to be trusted."""
LEAST_SHARE = 0.005
"""Effective rows for each row below which a few weights decide everything."""
LARGEST_ROW = 0.05
"""Share of all weight that one row may hold."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """`effective` = (Σw)² / Σw², Kish's sample size of the `n` rows; `mean_weight` is 1 but for chance when the logging
    policy can do all that the new one would; `refused` says why nothing can be estimated."""

    n: int
    effective: float
    mean_weight: float
    largest: float
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """Reward a slot under the new policy, with its 1 - α interval; all NaN when the overlap is refused."""

    estimate: float
    standard_error: float
    low: float
    high: float
    overlap: Overlap


@dataclass(frozen=True, slots=True)
class Log:
    """All [rows]: `reward`, `target` and `propensity` probabilities, `clusters` any integers that tell the users (or
    slates) apart; None: every row on its own."""

    reward: Values
    target: Values
    propensity: Values
    clusters: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        columns = {"target": self.target, "propensity": self.propensity, "clusters": self.clusters}
        for name, column in columns.items():
            if column is not None and (column.shape != self.reward.shape or self.reward.ndim != 1):
                raise refuse(name, f"has shape {column.shape} for rewards {self.reward.shape}; give one number a row")
        if not np.isfinite(self.reward).all():
            raise refuse("reward", "holds NaN or infinite numbers; leave those rows out")
        if not ((self.propensity > 0) & (self.propensity <= 1)).all():
            raise refuse("propensity", "is not above 0 and at most 1 everywhere; log the probability of what was shown")
        if not ((self.target >= 0) & (self.target <= 1)).all():
            raise refuse("target", "is not from 0 to 1 everywhere; give the new policy's probability of what was shown")

    @property
    def weights(self) -> Values:
        return self.target / self.propensity


def overlap(log: Log) -> Overlap:
    """Whether the logged rows can speak for the new policy at all."""
    w = log.weights
    total = float(w.sum())
    if not len(w) or total == 0:
        reason = "no logged row is one that the new policy would have shown"
        return Overlap(len(w), 0.0, 0.0, 0.0, f"{reason}; log with exploration first")
    effective, largest = total**2 / float(w @ w), float(w.max()) / total
    found = Overlap(len(w), effective, total / len(w), largest)
    return Overlap(found.n, effective, found.mean_weight, largest, _refused(found, log))


def ips(log: Log, *, alpha: float = 0.05) -> Value:
    """Inverse propensity scores."""
    return _value(log, log.weights * log.reward, None, alpha)


def snips(log: Log, *, alpha: float = 0.05) -> Value:
    """Self-normalised; the variance by the delta method for a ratio of sums."""
    return _value(log, log.weights * log.reward, log.weights, alpha)


def doubly_robust(log: Log, predicted: Values, baseline: Values, *, alpha: float = 0.05) -> Value:
    """`predicted [rows]` q: the model's reward of what was shown; `baseline [rows]` v: its mean over what the new
    policy would show there. Train the model on other rows than these."""
    for name, column in (("predicted", predicted), ("baseline", baseline)):
        if column.shape != log.reward.shape or not np.isfinite(column).all():
            raise refuse(name, f"has shape {column.shape} or holds NaN; give one finite number a row")
    return _value(log, baseline + log.weights * (log.reward - predicted), None, alpha)


def _value(log: Log, numerator: Values, denominator: Values | None, alpha: float) -> Value:
    check_alpha(alpha)
    found = overlap(log)
    if found.refused is not None:
        return Value(math.nan, math.nan, math.nan, math.nan, found)
    size = float(len(numerator)) if denominator is None else float(denominator.sum())
    estimate = float(numerator.sum()) / size
    residual = numerator - (estimate if denominator is None else estimate * denominator)
    error = math.sqrt(_variance_of_sum(residual, log.clusters)) / size
    reach = -float(special.ndtri(alpha / 2)) * error
    return Value(estimate, error, estimate - reach, estimate + reach, found)


def _variance_of_sum(residual: Values, clusters: npt.NDArray[np.int64] | None) -> float:
    """Of Σ residual (which is 0 in the sample), with whole clusters as what varies."""
    if clusters is not None:
        _, index = np.unique(clusters, return_inverse=True)
        residual = np.asarray(np.bincount(index, weights=residual), np.float64)
    count = len(residual)
    return float(residual @ residual) * count / (count - 1) if count > 1 else math.inf


def _refused(found: Overlap, log: Log) -> str | None:
    if found.effective < LEAST_EFFECTIVE or found.effective < LEAST_SHARE * found.n:
        return (
            f"{found.n} rows are worth {found.effective:.0f} for this policy; {LEAST_EFFECTIVE:.0f} and "
            f"{LEAST_SHARE:.1%} of them are needed: log more exploration, or ask for a policy nearer to the logged one"
        )
    if found.largest > LARGEST_ROW:
        return f"one row holds {found.largest:.0%} of all weight; log more exploration"
    error = math.sqrt(_variance_of_sum(log.weights - found.mean_weight, log.clusters)) / found.n
    if abs(found.mean_weight - 1) > 0.05 + 4 * error:
        return (
            f"weights average {found.mean_weight:.2f} and not 1: the new policy shows what the logged one never could, "
            "or the propensities are wrong"
        )
    return None
