"""Off-policy estimates: unbiased where they claim it, with intervals that cover, refused where nothing can be known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from services.recommender.experiments.off_policy import Log, Value, doubly_robust, ips, overlap, snips
from shared.errors import ValidationFailed

Values = npt.NDArray[np.float64]

LOGGING = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
TARGET = np.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
REWARD = np.array([[0.1, 0.3, 0.6], [0.5, 0.2, 0.4]])
TRUTH = float((TARGET * REWARD).sum(axis=1).mean())
RUNS = 1_000


def logged(random: np.random.Generator, rows: int) -> tuple[Log, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two contexts, three actions. With the contexts and actions of the rows."""
    context = random.integers(2, size=rows)
    action = (random.random(rows)[:, None] > LOGGING[context].cumsum(axis=1)).sum(axis=1)
    reward = (random.random(rows) < REWARD[context, action]).astype(np.float64)
    return Log(reward, TARGET[context, action], LOGGING[context, action]), context, action


def estimate(method: str, random: np.random.Generator) -> Value:
    log, context, action = logged(random, 800)
    if method == "ips":
        return ips(log)
    if method == "snips":
        return snips(log)
    model = np.full((2, 3), 0.35) if method == "dr, wrong model" else REWARD
    return doubly_robust(log, model[context, action], (TARGET * model).sum(axis=1)[context])


@pytest.mark.parametrize("method", ["ips", "snips", "dr, wrong model", "dr, right model"])
def test_estimates_are_right_on_average_and_their_intervals_cover(method: str) -> None:
    random = np.random.default_rng(1)
    found = [estimate(method, random) for _ in range(RUNS)]
    estimates = np.array([one.estimate for one in found])
    assert abs(estimates.mean() - TRUTH) < 4 * estimates.std() / math.sqrt(RUNS) + (0.002 if method == "snips" else 0)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(estimates.std(), rel=0.1)
    covered = np.mean([one.low <= TRUTH <= one.high for one in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / RUNS)


def test_a_right_model_and_normalised_weights_vary_less_than_plain_ones() -> None:
    random = np.random.default_rng(2)
    spread = {
        method: np.std([estimate(method, random).estimate for _ in range(300)])
        for method in ("ips", "snips", "dr, right model")
    }
    assert spread["dr, right model"] < spread["snips"] < spread["ips"]


def test_wrong_weights_are_saved_by_a_right_model_of_the_reward() -> None:
    log, context, action = logged(np.random.default_rng(3), 20_000)
    unweighted = Log(log.reward, log.propensity, log.propensity)
    found = doubly_robust(unweighted, REWARD[context, action], (TARGET * REWARD).sum(axis=1)[context])
    assert abs(found.estimate - TRUTH) < 4 * found.standard_error
    assert abs(ips(unweighted).estimate - TRUTH) > 10 * found.standard_error


def test_propensities_that_cannot_be_right_are_noticed() -> None:
    log, *_ = logged(np.random.default_rng(3), 20_000)
    refused = overlap(Log(log.reward, log.target, np.full(20_000, 1 / 3))).refused
    assert refused is not None
    assert "propensities are wrong" in refused


def test_the_logging_policy_itself_is_the_plain_mean_with_all_rows_effective() -> None:
    log, *_ = logged(np.random.default_rng(4), 500)
    same = Log(log.reward, log.propensity, log.propensity)
    found = ips(same)
    assert found.estimate == pytest.approx(log.reward.mean())
    assert found.standard_error == pytest.approx(log.reward.std(ddof=1) / math.sqrt(500))
    assert found.overlap.effective == pytest.approx(500)
    assert found.overlap.mean_weight == 1.0
    assert snips(same).estimate == pytest.approx(found.estimate)


def test_rows_of_one_user_count_as_one() -> None:
    log, *_ = logged(np.random.default_rng(5), 2_000)
    reward, target, propensity = (np.repeat(column, 5) for column in (log.reward, log.target, log.propensity))
    once, five_times = ips(log), ips(Log(reward, target, propensity, np.repeat(np.arange(2_000), 5)))
    assert five_times.estimate == pytest.approx(once.estimate)
    assert five_times.standard_error == pytest.approx(once.standard_error)
    assert ips(Log(reward, target, propensity)).standard_error == pytest.approx(
        once.standard_error / math.sqrt(5), rel=0.01
    )


HALF = np.full(10_000, 0.5)
HOPELESS = {
    "rows are worth 50": (np.where(np.arange(10_000) < 50, 1.0, 0.0), np.full(10_000, 0.005)),
    "no logged row": (np.zeros(10_000), HALF),
    "one row holds 7%": (np.r_[1.0, np.full(1_333, 0.2)], np.r_[0.01, np.full(1_333, 0.2)]),
    "average 0.50": (np.where(np.arange(10_000) < 5_000, 0.5, 0.0), HALF),
}


@pytest.mark.parametrize("reason", HOPELESS)
def test_hopeless_overlap_is_refused_with_the_reason_and_no_number(reason: str) -> None:
    target, propensity = HOPELESS[reason]
    log = Log(np.ones(len(target)), target, propensity)
    for found in (ips(log), snips(log), doubly_robust(log, log.reward, log.reward)):
        assert found.overlap.refused is not None
        assert reason in found.overlap.refused
        assert math.isnan(found.estimate)


def test_effective_rows_are_kishs() -> None:
    log = Log(np.ones(400), np.tile([0.1, 0.3], 200), np.full(400, 0.2))
    assert overlap(log).effective == pytest.approx((200 * 0.5 + 200 * 1.5) ** 2 / (200 * 0.25 + 200 * 2.25))


GOOD = Log(np.ones(3), np.full(3, 0.5), np.full(3, 0.5))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Log(np.ones(3), np.ones(2), np.ones(3)), "target"),
        (lambda: Log(np.ones(3), np.ones(3), np.zeros(3)), "propensity"),
        (lambda: Log(np.ones(3), np.ones(3) * 1.1, np.ones(3)), "target"),
        (lambda: Log(np.array([np.nan]), np.ones(1), np.ones(1)), "reward"),
        (lambda: Log(np.ones(3), np.ones(3), np.ones(3), np.arange(2)), "clusters"),
        (lambda: doubly_robust(GOOD, np.ones(2), np.ones(3)), "predicted"),
        (lambda: doubly_robust(GOOD, np.ones(3), np.array([1.0, np.nan, 1.0])), "baseline"),
        (lambda: ips(GOOD, alpha=0.0), "alpha"),
    ],
)
def test_impossible_input_is_refused_at_the_field(call: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        call()
    assert refused.value.errors[0].pointer == "/" + field
