"""Plans hold what they promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.moments import Moments
from services.recommender.experiments.statistics.power import (
    Plan,
    days_needed,
    detectable_effect,
    power,
    units_needed,
)
from shared.errors import ValidationFailed

PLAN = Plan(mean=10.0, variance=25.0)


def test_units_for_eighty_percent_are_the_textbooks() -> None:
    absolute = Plan(mean=10.0, variance=25.0, relative=False)
    a_variant = 2 * 25 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 / 0.5**2
    assert units_needed(absolute, 0.5) == pytest.approx(2 * a_variant, abs=2)


def test_the_number_of_units_is_the_fewest_that_suffice_and_shows_the_effect_it_was_made_for() -> None:
    for plan in (
        PLAN,
        Plan(mean=10.0, variance=25.0, tuning=5_000),
        Plan(mean=-10.0, variance=25.0, treatment_share=0.1),
    ):
        units = units_needed(plan, 0.03, 0.9)
        assert power(plan, 0.03, units) >= 0.9 > power(plan, 0.03, units - 1)
        assert detectable_effect(plan, units, 0.9) == pytest.approx(0.03, rel=1e-3)


def test_power_is_that_of_the_test_in_simulation() -> None:
    random = np.random.default_rng(12)
    runs, units = 1_500, 2_000
    found = 0
    for _ in range(runs):
        control, treatment = random.gamma(4, 2.5, 800), random.gamma(4, 2.5 * 1.06, 1_200)
        found += welch(Moments.of(control), Moments.of(treatment)).p_value < 0.05
    # The variance that the effect itself brings is what a plan cannot know: 1.06² of it here.
    theory = power(Plan(mean=10.0, variance=25.0, control_share=0.4, treatment_share=0.6), 0.06, units)
    assert abs(found / runs - theory) < 0.03 + 4 * math.sqrt(theory * (1 - theory) / runs)


def test_without_an_effect_power_is_alpha_and_it_rises_with_units_and_effect() -> None:
    assert power(PLAN, 0.0, 10_000) == pytest.approx(0.05)
    assert power(PLAN, 0.02, 10_000) < power(PLAN, 0.02, 20_000) < power(PLAN, 0.03, 20_000)
    absolute = Plan(mean=10.0, variance=25.0, relative=False)
    assert power(absolute, -0.2, 10_000) == power(absolute, 0.2, 10_000)
    # A larger treatment mean adds to the error of a relative lift, a smaller one takes from it.
    assert power(PLAN, -0.02, 10_000) > power(absolute, 0.2, 10_000) > power(PLAN, 0.02, 10_000)


def test_peeking_costs_units_and_cuped_spares_them() -> None:
    fixed = units_needed(PLAN, 0.02)
    assert units_needed(Plan(mean=10.0, variance=25.0, tuning=20_000), 0.02) > 1.5 * fixed
    assert units_needed(Plan(mean=10.0, variance=12.5), 0.02) == pytest.approx(fixed / 2, rel=1e-3)


def test_a_relative_lift_that_no_lift_can_show_is_infinite() -> None:
    assert detectable_effect(Plan(mean=0.1, variance=25.0), 100) == math.inf


def test_days_follow_the_known_days_then_the_last_week_and_end_with_a_week() -> None:
    daily = [100.0, 60.0, 40.0]
    assert days_needed(150, daily, whole_weeks=False) == 2
    assert days_needed(200, daily, whole_weeks=False) == 3
    assert days_needed(201, daily, whole_weeks=False) == 4
    assert days_needed(201, daily) == 7
    long = [1_000.0, 17.0] + [10.0] * 6
    assert days_needed(1_120, long, whole_weeks=False) == 8 + 4
    assert days_needed(1_120, long) == 14


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Plan(mean=0.0, variance=1.0), "mean"),
        (lambda: Plan(mean=1.0, variance=0.0), "variance"),
        (lambda: Plan(mean=1.0, variance=1.0, control_share=0.7), "shares"),
        (lambda: Plan(mean=1.0, variance=1.0, alpha=1.0), "alpha"),
        (lambda: Plan(mean=1.0, variance=1.0, tuning=-1.0), "tuning"),
        (lambda: power(PLAN, 0.1, 0), "units"),
        (lambda: units_needed(PLAN, 0.0), "effect"),
        (lambda: units_needed(PLAN, 1e-9), "effect"),
        (lambda: units_needed(PLAN, 0.1, 1.0), "target"),
        (lambda: detectable_effect(PLAN, 100, 0.01), "target"),
        (lambda: days_needed(10, []), "new_units_by_day"),
        (lambda: days_needed(10, [5.0, 0, 0, 0, 0, 0, 0, 0]), "new_units_by_day"),
    ],
)
def test_an_impossible_plan_is_refused_at_the_field(call: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        call()
    assert refused.value.errors[0].pointer == "/" + field
