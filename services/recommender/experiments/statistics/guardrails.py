"""A guardrail passes when harm beyond the margin is ruled out, not when no harm was found: few units find nothing.

Source: non-inferiority tests; Schultzberg, Ankargren, Frånberg 2024, "Risk-aware product decisions in A/B tests with
multiple metrics" (arXiv 2402.11609), by which guardrails need no correction of α for their number (each must pass), but
power for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from services.recommender.experiments.refusals import refuse
from services.recommender.experiments.statistics.effects import Estimate
from services.recommender.experiments.statistics.frequentist import Side, welch
from services.recommender.experiments.statistics.moments import Statistic
from services.recommender.experiments.statistics.sequential import DEFAULT_TUNING, confidence_sequence


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Guardrail:
    """`worst` is the most harmful lift that the data still allow, as a positive number when it is harm; `p_value` that
    of "worse by the margin or more". PASSED: `worst` is below the margin. FAILED: the data say harm, however small:
    even the best lift they allow is harm."""

    verdict: Verdict
    estimate: float
    worst: float
    margin: float
    p_value: float
    harmful: bool
    problem: str | None = None


def non_inferior(
    control: Statistic,
    treatment: Statistic,
    margin: float,
    *,
    lower_is_better: bool = False,
    relative: bool = True,
    alpha: float = 0.05,
) -> Guardrail:
    """One-sided at `alpha` each way. `margin` > 0: the harm that would be accepted, 0.01 for 1 % when relative.

    A treatment that is surely worse, but surely by less than the margin, has PASSED and is `harmful`.
    """
    _check_margin(margin)
    sign = 1.0 if lower_is_better else -1.0  # of harm
    toward, away = (Side.LESS, Side.GREATER) if lower_is_better else (Side.GREATER, Side.LESS)
    bound = welch(control, treatment, relative=relative, alpha=alpha, test_value=sign * margin, side=toward)
    other = welch(control, treatment, relative=relative, alpha=alpha, side=away)
    worst, best = (bound.high, other.low) if lower_is_better else (-bound.low, -other.high)
    return _judged(bound, worst, best, margin)


def non_inferior_at_any_look(
    control: Statistic,
    treatment: Statistic,
    margin: float,
    *,
    lower_is_better: bool = False,
    relative: bool = True,
    alpha: float = 0.05,
    tuning: float = DEFAULT_TUNING,
) -> Guardrail:
    """The same by a confidence sequence, for an alarm that watches from the first day. Its interval is two-sided at
    `alpha`, so each side errs less: half of it would not be proven to suffice, as a path may leave on both sides."""
    _check_margin(margin)
    sign = 1.0 if lower_is_better else -1.0
    found = confidence_sequence(
        control, treatment, relative=relative, alpha=alpha, test_value=sign * margin, tuning=tuning
    )
    if sign * found.estimate >= margin:
        found = replace(found, p_value=1.0)  # two-sided evidence, but of the harm
    worst, best = (found.high, found.low) if lower_is_better else (-found.low, -found.high)
    return _judged(found, worst, best, margin)


def _judged(found: Estimate, worst: float, best: float, margin: float) -> Guardrail:
    harmful = best > 0
    if found.problem is not None:
        return Guardrail(Verdict.UNDECIDED, math.nan, math.inf, margin, 1.0, False, found.problem.value)
    verdict = Verdict.PASSED if worst < margin else Verdict.FAILED if harmful else Verdict.UNDECIDED
    return Guardrail(verdict, found.estimate, worst, margin, found.p_value, harmful)


def _check_margin(margin: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise refuse("margin", f"is {margin}; give the harm that would be accepted, above 0: 0.01 for 1 %")
