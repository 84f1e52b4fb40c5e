"""Quantiles of events drawn again by user."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from services.recommender.experiments.statistics.effects import Problem
from services.recommender.experiments.statistics.quantiles import Clustered, quantile_lift
from shared.errors import ValidationFailed

Values = npt.NDArray[np.float64]
Users = npt.NDArray[np.int64]


def latencies(random: np.random.Generator, users: int, scale: float = 1.0) -> tuple[Values, Users]:
    """Some users are slow whatever they ask."""
    requests = random.poisson(6, users) + 1
    who = np.repeat(np.arange(users), requests)
    slow = np.repeat(random.normal(0, 0.5, users), requests)
    return 20 * scale * np.exp(slow + random.normal(0, 0.3, len(who))), who


@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.95, 0.99])
def test_a_quantile_is_numpys_inverted_cdf(q: float) -> None:
    values, who = latencies(np.random.default_rng(1), 100)
    assert Clustered(values, who).quantile(q) == np.quantile(values, q, method="inverted_cdf")


def test_the_interval_covers_the_true_lift_and_one_that_ignores_users_does_not() -> None:
    random = np.random.default_rng(2)
    runs, truth = 120, 0.1
    by_user = by_event = 0
    for seed in range(runs):
        (a, a_users), (b, b_users) = latencies(random, 120), latencies(random, 120, 1 + truth)
        found = quantile_lift(Clustered(a, a_users), Clustered(b, b_users), 0.9, draws=200, seed=seed)
        by_user += found.low <= truth <= found.high
        events = Clustered(a, np.arange(len(a))), Clustered(b, np.arange(len(b)))
        alone = quantile_lift(*events, 0.9, draws=200, seed=seed)
        by_event += alone.low <= truth <= alone.high
    assert abs(by_user / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)
    assert by_event / runs < 0.85


def test_the_same_seed_gives_the_same_interval_and_the_order_of_events_does_not_matter() -> None:
    random = np.random.default_rng(3)
    (a, a_users), (b, b_users) = latencies(random, 60), latencies(random, 60)
    mixed = random.permutation(len(a))
    one = quantile_lift(Clustered(a, a_users), Clustered(b, b_users), 0.95, draws=100)
    assert quantile_lift(Clustered(a[mixed], a_users[mixed]), Clustered(b, b_users), 0.95, draws=100) == one
    assert one.low < one.estimate < one.high


def test_absolute_and_relative_lifts_are_of_the_same_quantiles() -> None:
    random = np.random.default_rng(4)
    control, treatment = Clustered(*latencies(random, 60)), Clustered(*latencies(random, 60, 1.5))
    relative = quantile_lift(control, treatment, 0.5, draws=100)
    absolute = quantile_lift(control, treatment, 0.5, draws=100, relative=False)
    assert absolute.estimate == pytest.approx(absolute.treatment - absolute.control)
    assert relative.estimate == pytest.approx(absolute.estimate / absolute.control)


@pytest.mark.parametrize(
    ("values", "users", "problem"),
    [
        (np.empty(0), np.empty(0, np.int64), Problem.NO_UNITS),
        (np.ones(100), np.arange(100) % 19, Problem.FEW_USERS),
        (np.zeros(100), np.arange(100), Problem.CONTROL_IS_ZERO),
    ],
)
def test_where_nothing_can_be_known_it_says_why(values: Values, users: Users, problem: Problem) -> None:
    found = quantile_lift(Clustered(values, users), Clustered(np.ones(50), np.arange(50)), 0.5)
    assert (found.problem, found.low, found.high) == (problem, -math.inf, math.inf)


FINE = Clustered(np.arange(30.0), np.arange(30))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Clustered([1.0, 2.0], [1]), "users"),
        (lambda: Clustered([1.0, float("nan")], [1, 2]), "values"),
        (lambda: quantile_lift(FINE, FINE, 1.0), "q"),
        (lambda: quantile_lift(FINE, FINE, 0.5, draws=10), "draws"),
        (lambda: quantile_lift(FINE, FINE, 0.5, alpha=2.0), "alpha"),
    ],
)
def test_impossible_input_is_refused_at_the_field(call: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        call()
    assert refused.value.errors[0].pointer == "/" + field
