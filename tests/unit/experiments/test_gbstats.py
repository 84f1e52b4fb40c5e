"""The same sums give what GrowthBook's engine gives."""

from __future__ import annotations

import pytest

from services.recommender.experiments.statistics.bayes import Posterior, Prior, posterior
from services.recommender.experiments.statistics.cuped import Adjusted, Paired, cuped
from services.recommender.experiments.statistics.effects import Estimate
from services.recommender.experiments.statistics.frequentist import Side, welch
from services.recommender.experiments.statistics.moments import Moments, Proportion, Ratio, Statistic
from services.recommender.experiments.statistics.sequential import confidence_sequence
from services.recommender.experiments.statistics.srm import sample_ratio
from tests.unit.experiments.gbstats_numbers import NUMBERS

PAIRS: dict[str, tuple[Statistic, Statistic]] = {
    "mean": (Moments(1200, 3025.5, 15010.25), Moments(1150, 3110.75, 15990.5)),
    "small mean": (Moments(12, 30.0, 91.0), Moments(9, 31.5, 131.25)),
    "proportion": (Proportion(10_000, 812), Proportion(9_876, 905)),
    "ratio": (
        Ratio(Moments(800, 2100, 9500), Moments(800, 41000, 2900000), 140000),
        Ratio(Moments(820, 2350, 11200), Moments(820, 42100, 3010000), 155000),
    ),
    "cuped": cuped(
        Paired(Moments(3000, 6100, 31000), Moments(3000, 5900, 29500), 26000),
        Paired(Moments(3050, 6450, 33800), Moments(3050, 6050, 30100), 27600),
    ),
}
# A relative lift with CUPED follows the engine's later formula; 0.8.0 treats its own control as independent of itself.
EXACT = [case for case in NUMBERS if case != ("cuped", True)]
cases = pytest.mark.parametrize(("pair", "relative"), EXACT)


def interval(found: Estimate | Posterior) -> tuple[float, float]:
    return found.low, found.high


@cases
def test_a_fixed_test_agrees(pair: str, relative: bool) -> None:
    found = welch(*PAIRS[pair], relative=relative)
    ours = (found.estimate, found.standard_error, found.low, found.high, found.p_value)
    assert ours == pytest.approx(NUMBERS[pair, relative]["fixed"], rel=1e-9)


@cases
def test_one_sided_tests_agree(pair: str, relative: bool) -> None:
    greater = welch(*PAIRS[pair], relative=relative, test_value=-0.01, side=Side.GREATER)
    less = welch(*PAIRS[pair], relative=relative, side=Side.LESS)
    # 1 - cdf has lost the smaller digits of a p near 0.
    assert (greater.low, greater.p_value) == pytest.approx(NUMBERS[pair, relative]["greater"], rel=1e-9, abs=1e-15)
    assert less.p_value == pytest.approx(NUMBERS[pair, relative]["less_p"], rel=1e-9)


@cases
def test_a_confidence_sequence_agrees(pair: str, relative: bool) -> None:
    found = confidence_sequence(*PAIRS[pair], relative=relative)
    assert (*interval(found), found.p_value) == pytest.approx(NUMBERS[pair, relative]["sequential"], rel=1e-9)
    other = confidence_sequence(*PAIRS[pair], relative=relative, alpha=0.1, tuning=1_000)
    assert (*interval(other), other.p_value) == pytest.approx(NUMBERS[pair, relative]["sequential_1000"], rel=1e-9)


@cases
def test_a_posterior_agrees_flat_and_with_a_prior(pair: str, relative: bool) -> None:
    flat = posterior(*PAIRS[pair], relative=relative)
    ours = (flat.chance_to_win, *interval(flat), flat.risk_of_control, flat.risk_of_treatment)
    assert ours == pytest.approx(NUMBERS[pair, relative]["bayes"], rel=1e-6)
    found = posterior(*PAIRS[pair], relative=relative, lower_is_better=True, prior=Prior(0.0, 0.09, proper=True))
    with_mean = (found.chance_to_win, found.estimate, *interval(found), found.risk_of_control, found.risk_of_treatment)
    assert with_mean == pytest.approx(NUMBERS[pair, relative]["prior"], rel=1e-6)


def test_a_relative_lift_with_cuped_differs_from_the_old_engine_by_little() -> None:
    control, treatment = PAIRS["cuped"]
    assert isinstance(control, Adjusted)
    found = welch(control, treatment)
    estimate, error, *_ = NUMBERS["cuped", True]["fixed"]
    assert found.estimate == pytest.approx(estimate, rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ("units", "weights", "p_value"),
    [
        ([5000, 5100], [0.5, 0.5], 0.3197181768128675),
        ([5000, 5300], [0.5, 0.5], 0.003116693839866867),
        ([310, 290, 405], [0.3, 0.3, 0.4], 0.7044544010822487),
        ([90, 910], [0.1, 0.9], 0.29184054514378543),
    ],
)
def test_sample_ratios_agree(units: list[int], weights: list[float], p_value: float) -> None:
    keys = "abc"[: len(units)]
    found = sample_ratio(dict(zip(keys, units, strict=True)), dict(zip(keys, weights, strict=True)))
    assert found.p_value == pytest.approx(p_value, rel=1e-9)
