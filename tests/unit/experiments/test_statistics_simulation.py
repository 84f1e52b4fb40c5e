"""Error rates and coverage by simulation, seeded. Bounds are four Monte-Carlo errors wide, so a right method passes any
seed but one in 15,000."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from services.recommender.experiments.statistics.bayes import posterior
from services.recommender.experiments.statistics.cuped import Paired, PairedRatio, cuped
from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.guardrails import Verdict, non_inferior
from services.recommender.experiments.statistics.moments import Moments, Proportion, Ratio, Statistic
from services.recommender.experiments.statistics.multiple import benjamini_hochberg, holm
from services.recommender.experiments.statistics.sequential import confidence_sequence
from services.recommender.experiments.statistics.srm import sample_ratio

RUNS = 1_500
Columns = tuple[npt.NDArray[np.float64], ...]


def within(share: float, expected: float, runs: int = RUNS) -> bool:
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / runs)


def users(random: np.random.Generator, count: int, uplift: float = 0.0) -> Columns:
    """Clicks, impressions, and both before: a user's rate lasts and differs a lot, as does how much they look."""
    rate = random.beta(1, 4, count)
    looks = random.gamma(1.5, 8, count)
    seen, before = 1 + random.poisson(looks), 1 + random.poisson(looks)
    clicks = random.binomial(seen, np.minimum(rate * (1 + uplift), 1))
    past = random.binomial(before, rate)
    return tuple(column.astype(np.float64) for column in (clicks, seen, past, before))


@lru_cache
def arms(uplift: float, seed: int) -> list[tuple[Columns, Columns]]:
    random = np.random.default_rng(seed)
    return [(users(random, 500), users(random, 400, uplift)) for _ in range(RUNS)]


def pairs(kind: str, uplift: float, seed: int) -> list[tuple[Statistic, Statistic]]:
    made: list[tuple[Statistic, Statistic]] = []
    for a, b in arms(uplift, seed):
        if kind == "mean":
            made.append((Moments.of(a[0]), Moments.of(b[0])))
        elif kind == "proportion":
            made.append((Proportion(500, float((a[0] > 2).sum())), Proportion(400, float((b[0] > 2).sum()))))
        elif kind == "ratio":
            made.append((Ratio.of(*a[:2]), Ratio.of(*b[:2])))
        elif kind == "cuped mean":
            made.append(cuped(Paired.of(a[0], a[2]), Paired.of(b[0], b[2])))
        else:
            made.append(cuped(PairedRatio.of(*a), PairedRatio.of(*b)))
    return made


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("kind", ["mean", "proportion", "ratio", "cuped mean", "cuped ratio"])
def test_without_an_effect_p_values_are_uniform(kind: str, relative: bool) -> None:
    p = np.array([welch(*pair, relative=relative).p_value for pair in pairs(kind, 0.0, 1)])
    assert within(float((p < 0.05).mean()), 0.05)
    if kind != "proportion" or relative:  # counts are lumpy, which the distance sees
        assert stats.kstest(p, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("kind", ["mean", "ratio", "cuped mean", "cuped ratio"])
def test_intervals_cover_a_large_lift_as_often_as_they_say(kind: str) -> None:
    uplift = 0.3
    # The mean of min(1.3 r, 1) over r ~ Beta(1, 4), by numbers, relative to 0.2.
    rate = stats.beta.ppf((np.arange(200_000) + 0.5) / 200_000, 1, 4)
    truth = np.minimum(rate * (1 + uplift), 1).mean() / rate.mean() - 1
    found = [welch(*pair) for pair in pairs(kind, uplift, 2)]
    assert within(float(np.mean([one.low <= truth <= one.high for one in found])), 0.95)
    assert np.mean([one.estimate for one in found]) == pytest.approx(truth, abs=0.02)


def test_clicks_taken_as_independent_err_far_too_often_and_clustered_by_user_they_do_not() -> None:
    random = np.random.default_rng(3)
    naive, clustered = [], []
    for _ in range(RUNS):
        a, b = users(random, 500), users(random, 500)
        naive.append(welch(*(Proportion(int(one[1].sum()), float(one[0].sum())) for one in (a, b))).p_value < 0.05)
        clustered.append(welch(Ratio.of(*a[:2]), Ratio.of(*b[:2])).p_value < 0.05)
    assert np.mean(naive) > 0.2
    assert within(float(np.mean(clustered)), 0.05)


def test_cuped_narrows_the_interval_by_what_the_past_explains() -> None:
    plain = np.mean([welch(*pair).standard_error for pair in pairs("ratio", 0.0, 1)[:100]])
    adjusted = np.mean([welch(*pair).standard_error for pair in pairs("cuped ratio", 0.0, 1)[:100]])
    assert adjusted < 0.75 * plain


def peeked(random: np.random.Generator, looks: int, batch: int) -> list[tuple[Moments, Moments]]:
    """What is known at every look of one A/A test with skewed values."""
    sums = [Moments(0, 0.0, 0.0)] * 2
    seen = []
    values = random.gamma(0.7, 2, (looks, 2, batch))
    for look in range(looks):
        sums = [sums[arm] + Moments.of(values[look, arm]) for arm in (0, 1)]
        seen.append((sums[0], sums[1]))
    return seen


def test_peeking_forty_times_keeps_the_sequence_below_alpha_and_ruins_the_fixed_test() -> None:
    random = np.random.default_rng(5)
    runs = 1_000
    always, fixed = 0, 0
    for _ in range(runs):
        looks = peeked(random, 40, 250)
        always += any(confidence_sequence(*pair, tuning=5_000).excludes_zero for pair in looks)
        fixed += any(welch(*pair).p_value < 0.05 for pair in looks)
    assert always / runs <= 0.05
    assert 0.2 < fixed / runs < 0.45


def test_a_posterior_chance_to_win_is_as_often_right_as_it_says() -> None:
    random = np.random.default_rng(6)
    chances, wins = [], []
    for _ in range(RUNS):
        truth = random.normal(0, 0.1)
        a, b = random.normal(10, 5, 300), random.normal(10 + truth * 10, 5, 300)
        chances.append(posterior(Moments.of(a), Moments.of(b)).chance_to_win)
        wins.append(truth > 0)
    sure = np.array(chances) > 0.9
    # The truths are wide against the error (0.04), so the flat prior is nearly theirs.
    assert np.mean(np.array(wins)[sure]) > 0.95
    assert np.mean(chances) == pytest.approx(np.mean(wins), abs=0.04)


def test_a_guardrail_with_harm_of_just_the_margin_passes_at_most_alpha_of_the_time() -> None:
    random = np.random.default_rng(7)
    passed = sum(
        non_inferior(
            Moments.of(random.normal(10, 4, 400)), Moments.of(random.normal(9.5, 4, 400)), 0.05, alpha=0.05
        ).verdict
        is Verdict.PASSED
        for _ in range(RUNS)
    )
    assert within(passed / RUNS, 0.05)


def test_sample_ratio_alarms_as_seldom_as_its_threshold_says_and_finds_a_loss_of_one_percent() -> None:
    random = np.random.default_rng(8)
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}

    def mismatches(shares: list[float], units: int, threshold: float) -> float:
        draws = random.multinomial(units, shares, 2_000)
        named = (dict(zip("abc", map(int, draw), strict=True)) for draw in draws)
        return float(np.mean([sample_ratio(one, weights, threshold).mismatch for one in named]))

    assert within(mismatches([0.5, 0.3, 0.2], 20_000, 0.05), 0.05, 2_000)
    assert mismatches([0.505, 0.295, 0.2], 400_000, 0.001) > 0.99


def test_holm_holds_the_family_and_benjamini_hochberg_the_share_of_false_discoveries() -> None:
    random = np.random.default_rng(9)
    family, shares = 0, []
    for _ in range(RUNS):
        truths = np.repeat([0.0, 3.0], [15, 5])
        p = [float(one) for one in 2 * stats.norm.sf(np.abs(random.normal(truths)))]
        family += any(one < 0.05 for one in holm(p)[:15])
        found = np.array(benjamini_hochberg(p)) < 0.05
        shares.append(found[:15].sum() / max(found.sum(), 1))
    assert family / RUNS < 0.05 + 4 * math.sqrt(0.05 * 0.95 / RUNS)
    assert float(np.mean(shares)) < 0.05 + 4 * float(np.std(shares)) / math.sqrt(RUNS)
