"""From sufficient statistics to the table of a report: one metric, every variant against the control. Pure.

The tests are the always-valid ones, because a running experiment is looked at every day. The correction runs over all
comparisons of a role, and each interval is widened by as much as its p-value was raised, so that verdict and interval
agree. Guardrails need no correction: each must pass (`statistics.guardrails`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.recommender.experiments.metrics import Kind, Metric
from services.recommender.experiments.report import Bounds, Cell, MetricResult, Role, Verdict
from services.recommender.experiments.statistics.bayes import posterior
from services.recommender.experiments.statistics.cuped import Adjusted, Paired, PairedRatio, cuped
from services.recommender.experiments.statistics.effects import Estimate
from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.guardrails import non_inferior_at_any_look
from services.recommender.experiments.statistics.moments import Moments, Proportion, Ratio, Statistic
from services.recommender.experiments.statistics.multiple import benjamini_hochberg, holm
from services.recommender.experiments.statistics.sequential import DEFAULT_TUNING, confidence_sequence

Sums = Mapping[str, Any]
"""n and {x, y, p, q, xx, xy, …}: after (x / y) and before (p / q) the first exposure; what is missing is 0."""
CORRECTIONS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "benjamini_hochberg": benjamini_hochberg,
    "none": list,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A metric in its role; `sums` {variant: Sums} of all variants."""

    metric: Metric
    role: Role
    sums: Mapping[str, Sums]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    control: Statistic
    treatment: Statistic
    adjusted: bool


def statistic(metric: Metric, sums: Sums) -> Statistic:
    if metric.kind is Kind.RATIO:
        return _ratio(sums, "x", "y")
    if metric.kind is Kind.PROPORTION:
        return Proportion(int(sums.get("n", 0)), float(sums.get("x", 0)))
    return _moments(sums, "x")


def pair(metric: Metric, control: Sums, treatment: Sums) -> Pair:
    """With CUPED where both have a past."""
    if metric.cuped and all(one.get("pp", 0) > 0 for one in (control, treatment)):
        if metric.kind is Kind.RATIO:
            both = cuped(_paired_ratio(control), _paired_ratio(treatment))
        else:
            both = cuped(_paired(metric, control), _paired(metric, treatment))
        return Pair(*both, adjusted=isinstance(both[0], Adjusted))
    return Pair(statistic(metric, control), statistic(metric, treatment), adjusted=False)


def results(
    asked: Sequence[Asked], variants: Sequence[str], *, alpha: float, correction: str
) -> tuple[MetricResult, ...]:
    """`variants`: the control first. One result an `asked`, in its order."""
    levels: dict[tuple[int, str], tuple[float, float]] = {}
    for role in Role:
        cells = [(place, name) for place, one in enumerate(asked) if one.role is role for name in variants[1:]]
        tests = [_tested(asked[place], variants[0], name, alpha) for place, name in cells]
        raised = list(tests) if role is Role.GUARDRAIL else CORRECTIONS[correction](tests)
        levels |= {
            cell: (q, alpha * min(p / q, 1.0) if p > 0 else alpha / len(cells))
            for cell, p, q in zip(cells, tests, raised, strict=True)
        }
    return tuple(_result(place, one, variants, alpha, levels) for place, one in enumerate(asked))


def level(result: MetricResult, variant: str, alpha: float) -> float:
    """The corrected α of a cell, for intervals drawn elsewhere of the same comparison."""
    cell = next((one for one in result.cells if one.variant == variant), None)
    if cell is None or not cell.p_value or not cell.p_adjusted or result.role is Role.GUARDRAIL:
        return alpha
    return alpha * min(cell.p_value / cell.p_adjusted, 1.0)


def always_valid(both: Pair, level: float, alpha: float) -> Estimate:
    """The interval at the corrected `level` with the mixture that was tuned for `alpha`: so p is the same at every
    level, is below `level` exactly where the interval excludes zero, and no tuning depends on the data."""
    tuning = DEFAULT_TUNING * _mixture(level) / _mixture(alpha)
    return confidence_sequence(both.control, both.treatment, alpha=level, tuning=tuning)


def _mixture(alpha: float) -> float:
    """What ρ² x N* is in `statistics.sequential`."""
    return -2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)


def cell(
    one: Asked, control: str, variant: str, alpha: float, level: float | None = None, adjusted_p: float | None = None
) -> Cell:
    """`level`: the corrected α of its intervals."""
    level = alpha if level is None else level
    own = statistic(one.metric, one.sums.get(variant, {}))
    plain = Cell(
        variant=variant,
        units=own.n,
        value=_finite(own.unadjusted_mean) if own.n else None,
        standard_deviation=_finite(math.sqrt(own.variance)) if own.n else None,
    )
    if variant == control:
        return plain
    both = pair(one.metric, one.sums.get(control, {}), one.sums.get(variant, {}))
    fixed = welch(both.control, both.treatment, alpha=level)
    always = always_valid(both, level, alpha)
    chance = posterior(both.control, both.treatment, lower_is_better=not one.metric.higher_is_better)
    verdict, p_value = _verdict(one, both, always, alpha)
    known = always.problem is None
    return replace(
        plain,
        lift=_finite(always.estimate),
        difference=_finite(both.treatment.mean - both.control.mean) if known else None,
        fixed=bounds(fixed),
        sequential=bounds(always),
        p_value=p_value if known else None,
        p_adjusted=(p_value if adjusted_p is None else adjusted_p) if known else None,
        chance_to_win=chance.chance_to_win if known else None,
        verdict=verdict,
        problem=None if always.problem is None else always.problem.value,
    )


def bounds(found: Estimate) -> Bounds:
    return Bounds(low=_finite(found.low), high=_finite(found.high))


def _result(
    place: int,
    one: Asked,
    variants: Sequence[str],
    alpha: float,
    levels: Mapping[tuple[int, str], tuple[float, float]],
) -> MetricResult:
    metric, control = one.metric, variants[0]
    cells = []
    for name in variants:
        adjusted_p, own = levels.get((place, name), (None, alpha))
        cells.append(cell(one, control, name, alpha, own, None if one.role is Role.GUARDRAIL else adjusted_p))
    pairs = [pair(metric, one.sums.get(control, {}), one.sums.get(name, {})) for name in variants[1:]]
    caps = [sums["cap"] for sums in one.sums.values() if sums.get("cap") is not None]
    return MetricResult(
        metric=metric.key,
        title=metric.title or metric.key,
        role=one.role,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        cells=tuple(cells),
        margin=one.margin,
        cuped=any(both.adjusted for both in pairs),
        winsorised_at=caps[0] if caps else None,
    )


def _tested(one: Asked, control: str, variant: str, alpha: float) -> float:
    both = pair(one.metric, one.sums.get(control, {}), one.sums.get(variant, {}))
    return always_valid(both, alpha, alpha).p_value


def _verdict(one: Asked, both: Pair, always: Estimate, alpha: float) -> tuple[Verdict, float]:
    better = one.metric.higher_is_better
    if one.role is Role.GUARDRAIL and one.margin is not None:
        lower = not better
        judged = non_inferior_at_any_look(both.control, both.treatment, one.margin, lower_is_better=lower, alpha=alpha)
        return Verdict(judged.verdict.value), judged.p_value
    if not always.excludes_zero:
        return Verdict.UNDECIDED, always.p_value
    return (Verdict.BETTER if (always.low > 0) is better else Verdict.WORSE), always.p_value


def _paired(metric: Metric, sums: Sums) -> Paired:
    n, x = int(sums.get("n", 0)), float(sums.get("x", 0))
    post = Proportion(n, x) if metric.kind is Kind.PROPORTION else Moments(n, x, float(sums.get("xx", 0)))
    return Paired(post, _moments(sums, "p"), float(sums.get("xp", 0)))


def _paired_ratio(sums: Sums) -> PairedRatio:
    crossed = (float(sums.get(name, 0)) for name in ("xp", "xq", "yp", "yq"))
    return PairedRatio(_ratio(sums, "x", "y"), _ratio(sums, "p", "q"), *crossed)


def _moments(sums: Sums, name: str) -> Moments:
    return Moments(int(sums.get("n", 0)), float(sums.get(name, 0)), float(sums.get(name * 2, 0)))


def _ratio(sums: Sums, over: str, under: str) -> Ratio:
    return Ratio(_moments(sums, over), _moments(sums, under), float(sums.get(over + under, 0)))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
