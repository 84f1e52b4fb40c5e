"""What the statistics answer, by hand-made numbers and against plain computations on the units themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from services.recommender.experiments.statistics.bayes import posterior
from services.recommender.experiments.statistics.cuped import (
    Adjusted,
    Paired,
    PairedRatio,
    cuped,
    variance_reduction,
)
from services.recommender.experiments.statistics.effects import Problem, lift
from services.recommender.experiments.statistics.frequentist import one_sample, welch
from services.recommender.experiments.statistics.guardrails import Verdict, non_inferior, non_inferior_at_any_look
from services.recommender.experiments.statistics.moments import Moments, Proportion, Ratio, Statistic, add
from services.recommender.experiments.statistics.multiple import benjamini_hochberg, holm
from services.recommender.experiments.statistics.outliers import cap_at, winsorise
from services.recommender.experiments.statistics.sequential import confidence_sequence, critical_value
from services.recommender.experiments.statistics.srm import sample_ratio
from shared.errors import ValidationFailed

RANDOM = np.random.default_rng(11)
A, B = RANDOM.gamma(2, 2, 400), RANDOM.gamma(2, 2.2, 350)
NUMBERS = st.floats(-100, 100)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def test_welch_on_the_absolute_lift_is_scipys() -> None:
    found = welch(Moments.of(A), Moments.of(B), relative=False)
    theirs = stats.ttest_ind(B, A, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_a_one_sample_test_is_scipys() -> None:
    found = one_sample(Moments.of(A), test_value=3.9)
    theirs = stats.ttest_1samp(A, 3.9)
    interval = theirs.confidence_interval(0.95)
    assert (found.p_value, found.low, found.high) == pytest.approx(
        (theirs.pvalue, interval.low, interval.high), rel=1e-9
    )


@given(arrays.arrays(np.float64, st.integers(2, 40), elements=NUMBERS), st.integers(0, 40))
def test_sums_of_parts_are_the_sums_of_the_whole(values: Any, cut: int) -> None:
    whole, parts = Moments.of(values), Moments.of(values[:cut]) + Moments.of(values[cut:])
    assert parts.n == whole.n
    assert parts.sum == pytest.approx(whole.sum, abs=1e-9)
    assert whole.variance == pytest.approx(values.var(ddof=1), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1, 9.99, 1e6 + 0.1])
def test_equal_units_have_no_variance_however_a_database_rounds_their_sums(value: float) -> None:
    for n in range(3, 2_000, 7):
        assert (
            Moments(n, float(np.cumsum(np.full(n, value))[-1]), float(np.cumsum(np.full(n, value**2))[-1])).variance
            == 0
        )
    assert welch(Moments.of(np.full(9, value)), Moments.of(np.full(10, 0.2))).problem is Problem.NO_VARIANCE


def test_units_without_any_event_count_as_zeros() -> None:
    bought = Moments.of([5.0, 7.0])
    everybody = bought + Moments(8, 0.0, 0.0)
    assert (everybody.n, everybody.mean) == (10, 1.2)
    assert everybody.variance == pytest.approx(np.var([5.0, 7.0] + [0.0] * 8, ddof=1))


def test_a_ratio_has_the_variance_of_its_linearisation() -> None:
    impressions = RANDOM.poisson(8, 500) + 1.0
    clicks = RANDOM.binomial(impressions.astype(int), RANDOM.beta(1, 9, 500)).astype(float)
    ratio = Ratio.of(clicks, impressions)
    linear = (clicks - ratio.mean * impressions) / impressions.mean()
    assert ratio.mean == pytest.approx(clicks.sum() / impressions.sum())
    assert ratio.variance == pytest.approx(linear.var(ddof=1), rel=1e-9)
    halves = Ratio.of(clicks[:200], impressions[:200]) + Ratio.of(clicks[200:], impressions[200:])
    assert (halves.mean, halves.variance) == pytest.approx((ratio.mean, ratio.variance), rel=1e-9)


def test_a_ratio_of_equal_users_has_no_variance_even_when_users_differ_in_size() -> None:
    impressions = np.array([3.0, 5.0, 9.0, 11.0])
    assert Ratio.of(impressions * 0.3, impressions).variance == 0


def test_cuped_is_the_regression_on_the_past_and_drops_what_it_explains() -> None:
    past = RANDOM.gamma(2, 2, 4_000)
    control, treatment = past[:2_000], past[2_000:]
    after_c, after_t = control + RANDOM.normal(0, 1, 2_000), treatment + 0.2 + RANDOM.normal(0, 1, 2_000)
    a, b = cuped(Paired.of(after_c, control), Paired.of(after_t, treatment))
    assert isinstance(a, Adjusted)
    both = np.concatenate([after_c, after_t])
    theta = np.cov(both, past)[0, 1] / past.var(ddof=1)
    assert a.theta == pytest.approx(theta)
    plain = welch(Moments.of(after_c - theta * control), Moments.of(after_t - theta * treatment), relative=False)
    found = welch(a, b, relative=False)
    assert (found.estimate, found.p_value) == pytest.approx((plain.estimate, plain.p_value), rel=1e-6)
    assert variance_reduction(a) == pytest.approx(8 / 9, abs=0.03)
    assert a.unadjusted_mean == pytest.approx(after_c.mean())


def test_cuped_of_a_ratio_is_that_of_its_linearisation() -> None:
    arms = []
    for effect in (0.0, 0.05):
        rate = RANDOM.beta(2, 8, 900)
        seen, before = RANDOM.poisson(9, 900) + 1, RANDOM.poisson(9, 900) + 1
        clicks, past = RANDOM.binomial(seen, np.minimum(rate + effect, 1)), RANDOM.binomial(before, rate)
        arms.append([column.astype(float) for column in (clicks, seen, past, before)])
    a, b = cuped(PairedRatio.of(*arms[0]), PairedRatio.of(*arms[1]))
    assert isinstance(a, Adjusted)
    linear = [((y - y.sum() / d.sum() * d) / d.mean(), (x - x.sum() / e.sum() * e) / e.mean()) for y, d, x, e in arms]
    theta = sum(np.cov(post, pre)[0, 1] for post, pre in linear) / sum(pre.var(ddof=1) for _, pre in linear)
    assert a.theta == pytest.approx(theta, rel=1e-9)
    for found, (post, pre) in zip((a, b), linear, strict=True):
        assert found.variance == pytest.approx((post - theta * pre).var(ddof=1), rel=1e-9)
    assert 0.1 < variance_reduction(a) < 0.9


def test_without_a_past_cuped_changes_nothing() -> None:
    a, b = Paired.of(A, np.zeros(len(A))), Paired.of(B, np.zeros(len(B)))
    assert cuped(a, b) == (a.post, b.post)
    ratio = PairedRatio.of(A, np.ones(len(A)), np.zeros(len(A)), np.zeros(len(A)))
    assert cuped(ratio, ratio) == (ratio.post, ratio.post)


def test_an_outcome_that_the_past_fixes_has_no_variance_left() -> None:
    a, b = cuped(Paired.of(2 * A, A), Paired.of(2 * B, B))
    assert (a.variance, b.variance) == (0, 0)


@pytest.mark.parametrize(
    ("control", "treatment", "problem"),
    [
        (Moments(0, 0, 0), Moments.of(B), Problem.NO_UNITS),
        (Moments.of(A), Proportion(0, 0), Problem.NO_UNITS),
        (Proportion(100, 0), Proportion(100, 3), Problem.CONTROL_IS_ZERO),
        (Moments.of([1.0]), Moments.of(B), Problem.NO_VARIANCE),
        (Proportion(100, 100), Proportion(100, 90), Problem.NO_VARIANCE),
        (Ratio.of([0.0, 0.0], [0.0, 0.0]), Ratio.of([1.0, 0.0], [2.0, 1.0]), Problem.CONTROL_IS_ZERO),
    ],
)
def test_where_nothing_can_be_known_every_method_says_why(
    control: Statistic, treatment: Statistic, problem: Problem
) -> None:
    for found in (welch(control, treatment), confidence_sequence(control, treatment)):
        assert (found.problem, found.p_value, found.low, found.high) == (problem, 1.0, -math.inf, math.inf)
        assert not found.excludes_zero
    guess = posterior(control, treatment)
    assert (guess.problem, guess.chance_to_win) == (problem, 0.5)
    guard = non_inferior(control, treatment, 0.01)
    assert (guard.verdict, guard.problem, guard.harmful) == (Verdict.UNDECIDED, problem.value, False)


def test_an_absolute_lift_over_a_control_of_zero_is_known() -> None:
    found = lift(Moments.of([-1.0, 1.0]), Moments.of([1.0, 3.0]), relative=False)
    assert (found.estimate, found.variance, found.problem) == (2.0, 2.0, None)


def test_a_confidence_sequence_is_wider_than_a_fixed_interval_and_tightest_near_its_tuning() -> None:
    fixed, always = welch(Moments.of(A), Moments.of(B)), confidence_sequence(Moments.of(A), Moments.of(B))
    assert always.low < fixed.low < fixed.high < always.high
    reach = {units: critical_value(units, 0.05, 5_000) for units in (100, 1_000, 5_000, 20_000, 1_000_000)}
    assert min(reach, key=lambda units: reach[units]) == 5_000
    assert all(one > 1.96 for one in reach.values())


@given(st.floats(0, 3), st.integers(300, 10**9))
def test_the_always_valid_p_falls_below_alpha_exactly_where_the_interval_leaves_zero(shift: float, n: int) -> None:
    control = Moments(n, 10.0 * n, 101.0 * n)
    mean = 10 + shift * 5 / math.sqrt(n)
    treatment = Moments(n, mean * n, (mean**2 + 1) * n)
    found = confidence_sequence(control, treatment)
    assert 0 <= found.p_value <= 1
    if abs(found.p_value - 0.05) > 1e-6:
        assert found.excludes_zero == (found.p_value < 0.05)


def test_an_overwhelming_effect_has_a_p_of_zero_and_no_overflow() -> None:
    control, treatment = Proportion(10**9, 10**8), Proportion(10**9, 3 * 10**8)
    assert confidence_sequence(control, treatment).p_value == pytest.approx(0, abs=1e-300)
    assert welch(control, treatment).p_value == pytest.approx(0, abs=1e-300)


def test_holm_is_the_textbook_step_down_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(P_VALUES)
def test_benjamini_hochberg_is_scipys(p_values: list[float]) -> None:
    theirs = stats.false_discovery_control(p_values) if p_values else np.array([])
    assert benjamini_hochberg(p_values) == pytest.approx(list(theirs))


@given(P_VALUES)
def test_adjusted_p_values_are_between_the_raw_and_bonferronis(p_values: list[float]) -> None:
    for p, discovery, family in zip(p_values, benjamini_hochberg(p_values), holm(p_values), strict=True):
        assert p <= discovery + 1e-12 <= family + 2e-12 <= min(p * len(p_values), 1) + 3e-12


def test_a_zero_weight_variant_changes_no_p_and_a_unit_in_it_is_a_leak() -> None:
    split = sample_ratio({"a": 5000, "b": 5300}, {"a": 1, "b": 1})
    with_dead = sample_ratio({"a": 5000, "b": 5300, "dead": 0}, {"a": 1, "b": 1, "dead": 0})
    assert with_dead == split
    assert not with_dead.alarm
    leak = sample_ratio({"a": 5000, "b": 5000, "dead": 2, "unknown": 1}, {"a": 1, "b": 1, "dead": 0})
    assert (leak.leaks, leak.p_value, leak.mismatch, leak.alarm) == ({"dead": 2, "unknown": 1}, 1.0, False, True)


def test_a_skewed_split_is_a_mismatch_only_once_there_are_enough_units() -> None:
    assert sample_ratio({"a": 5000, "b": 5400}, {"a": 0.5, "b": 0.5}).mismatch
    few = sample_ratio({"a": 0, "b": 40}, {"a": 0.9, "b": 0.1})
    assert few.p_value < 0.001
    assert (few.enough, few.mismatch) == (False, False)
    assert sample_ratio({}, {"a": 1, "b": 1}).p_value == 1.0


@pytest.mark.parametrize(
    ("mean", "margin", "lower_is_better", "verdict", "harmful"),
    [
        (10.0, 0.01, False, Verdict.PASSED, False),
        (9.95, 0.01, False, Verdict.PASSED, True),
        (9.5, 0.01, False, Verdict.FAILED, True),
        (10.5, 0.01, False, Verdict.PASSED, False),
        (10.5, 0.01, True, Verdict.FAILED, True),
        (9.5, 0.01, True, Verdict.PASSED, False),
        (10.05, 0.01, True, Verdict.PASSED, True),
        (10.0, 0.0005, False, Verdict.UNDECIDED, False),
    ],
)
@pytest.mark.parametrize("method", [non_inferior, non_inferior_at_any_look])
def test_a_guardrail_passes_when_harm_beyond_the_margin_is_ruled_out(
    method: Any, mean: float, margin: float, lower_is_better: bool, verdict: Verdict, harmful: bool
) -> None:
    n = 20_000
    control, treatment = Moments(n, 10.0 * n, 101.0 * n), Moments(n, mean * n, (mean**2 + 1) * n)
    found = method(control, treatment, margin, lower_is_better=lower_is_better)
    assert (found.verdict, found.harmful) == (verdict, harmful)
    assert (found.p_value < 0.05) == (verdict is Verdict.PASSED)


def test_one_cap_is_taken_from_all_variants_and_zeros_can_be_left_out_of_it() -> None:
    spent = np.concatenate([np.zeros(990), np.arange(1.0, 11.0)])
    assert cap_at(spent, 0.5) == 0
    assert cap_at(spent, 0.5, ignore_zeros=True) == 5.5
    assert winsorise([1.0, 5.0, 100.0], 9.0, 2.0).tolist() == [2.0, 5.0, 9.0]


def test_kinds_of_means_add_up_to_the_general_one() -> None:
    assert add(Proportion(10, 3), Proportion(5, 1)) == Proportion(15, 4)
    assert add(Proportion(10, 3), Moments(5, 4.0, 6.0)) == Moments(15, 7.0, 9.0)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Moments(-1, 0, 0), "n"),
        (lambda: Moments(0, 3.0, 9.0), "n"),
        (lambda: Moments(2, float("nan"), 1.0), "sum"),
        (lambda: Moments(2, 10.0, 20.0), "sum_squares"),
        (lambda: Proportion(5, 6), "sum"),
        (lambda: Proportion(5, float("nan")), "sum"),
        (lambda: Ratio(Moments(2, 2, 2), Moments(3, 3, 3), 2), "numerator"),
        (lambda: Paired(Moments(2, 2, 2), Moments(3, 3, 3), 2), "pre"),
        (lambda: welch(Moments.of(A), Moments.of(B), alpha=0.0), "alpha"),
        (lambda: confidence_sequence(Moments.of(A), Moments.of(B), tuning=0), "tuning"),
        (lambda: non_inferior(Moments.of(A), Moments.of(B), -0.01), "margin"),
        (lambda: holm([0.1, 1.2]), "p_values"),
        (lambda: benjamini_hochberg([float("nan")]), "p_values"),
        (lambda: sample_ratio({"a": 1}, {"a": 0.0}), "weights"),
        (lambda: sample_ratio({"a": -1}, {"a": 1.0}), "units"),
        (lambda: cap_at([1.0], 0), "percentile"),
        (lambda: cap_at([0.0], 0.9, ignore_zeros=True), "values"),
        (lambda: winsorise([1.0], 1.0, 2.0), "lower"),
    ],
)
def test_impossible_input_is_refused_at_the_field(call: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        call()
    assert refused.value.errors[0].pointer == "/" + field
