"""How many units, how long, and what would be seen: before the start.

Normal power of the two-sided test on the lift, both tails, with the delta method's variance at the assumed effect, as
GrowthBook's power calculator has it. `tuning` set: of the confidence sequence looked at once, at the end, which is a
lower bound for one that is watched. With CUPED, give the adjusted variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from scipy import special

from services.recommender.experiments.refusals import check_alpha, check_positive, refuse
from services.recommender.experiments.statistics.sequential import critical_value

MOST_UNITS = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`mean` and `variance` (per unit) of the metric without an effect; `control_share` and `treatment_share` of all
    exposed units. `alpha` two-sided: divide it by the number of comparisons that will be made."""

    mean: float
    variance: float
    control_share: float = 0.5
    treatment_share: float = 0.5
    relative: bool = True
    alpha: float = 0.05
    tuning: float | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_positive("variance", self.variance)
        if self.relative and self.mean == 0:
            raise refuse("mean", "is 0, so no lift can be relative to it; plan the absolute one")
        shares = (self.control_share, self.treatment_share)
        if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise refuse("shares", f"are {shares}; give each above 0, together at most 1")
        if self.tuning is not None:
            check_positive("tuning", self.tuning)


def power(plan: Plan, effect: float, units: float) -> float:
    """The chance that `units` exposed in all show an `effect` of this size as significant."""
    check_positive("units", units)
    reach = _critical(plan, units)
    distance = abs(effect) / _error(plan, effect, units)
    return float(special.ndtr(distance - reach) + special.ndtr(-reach - distance))


def units_needed(plan: Plan, effect: float, target: float = 0.8) -> int:
    """The fewest exposed units in all that reach the `target` power."""
    _check_target(plan, target)
    if effect == 0 or not math.isfinite(effect):
        raise refuse("effect", f"is {effect}; give the smallest lift that would change the decision, such as 0.02")
    if power(plan, effect, MOST_UNITS) < target:
        raise refuse("effect", f"is {effect}, which even {MOST_UNITS:.0e} units would not show; plan a larger one")
    return _first(lambda units: power(plan, effect, units) >= target)


def detectable_effect(plan: Plan, units: float, target: float = 0.8) -> float:
    """The smallest positive lift that `units` in all show with the `target` power; infinite when there is none: the
    error of a relative lift grows with the lift."""
    _check_target(plan, target)
    high = _error(plan, 0.0, units)
    while power(plan, high, units) < target:
        high *= 2
        if high > 1e9 * _error(plan, 0.0, units) + 1e9:
            return math.inf
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if power(plan, middle, units) >= target else (middle, high)
    return high


def days_needed(units: float, new_units_by_day: Sequence[float], *, whole_weeks: bool = True) -> int:
    """Days until `units` distinct units were exposed. `new_units_by_day`: units not seen on an earlier day, day by day
    as far as known: fewer come every day, as the frequent ones are counted first; after that the mean of the last
    seven is assumed. `whole_weeks` rounds up, for weekends behave otherwise."""
    check_positive("units", units)
    daily = list(new_units_by_day)
    if not daily or min(daily) < 0:
        raise refuse("new_units_by_day", f"is {daily}; give one count a day, 0 or more, for a day at least")
    for day, total in enumerate(accumulate(daily), 1):
        if total >= units:
            return _weeks(day) if whole_weeks else day
    rate = sum(daily[-7:]) / len(daily[-7:])
    if rate == 0:
        raise refuse("new_units_by_day", "ends with a week of zeros, so the units would never come; widen the target")
    days = len(daily) + math.ceil((units - sum(daily)) / rate)
    return _weeks(days) if whole_weeks else days


def _error(plan: Plan, effect: float, units: float) -> float:
    control, treatment = units * plan.control_share, units * plan.treatment_share
    if not plan.relative:
        return math.sqrt(plan.variance * (1 / control + 1 / treatment))
    return math.sqrt(plan.variance * ((1 + effect) ** 2 / control + 1 / treatment)) / abs(plan.mean)


def _critical(plan: Plan, units: float) -> float:
    if plan.tuning is None:
        return -float(special.ndtri(plan.alpha / 2))
    compared = units * (plan.control_share + plan.treatment_share)
    return critical_value(compared, plan.alpha, plan.tuning)


def _first(enough: Callable[[int], bool]) -> int:
    high = 2
    while not enough(high):
        high *= 2
    low = high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _check_target(plan: Plan, target: float) -> None:
    if not plan.alpha < target < 1:
        raise refuse(
            "target", f"is {target}; give the power wanted, above alpha ({plan.alpha}) and below 1, such as 0.8"
        )


def _weeks(days: int) -> int:
    return -(-days // 7) * 7
