"""Team-draft interleaving: a fair slate, and a preference that chance alone does not make."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.recommender.experiments.interleaving import TEAM_A, TEAM_B, Credit, preference, team_draft
from shared.errors import ValidationFailed

RANKINGS = st.lists(st.integers(0, 25), unique=True, max_size=15).map(lambda one: np.array(one, np.int32))


@given(RANKINGS, RANKINGS, st.integers(0, 20), st.integers(0, 2**32))
def test_a_slate_holds_each_item_once_and_every_pick_is_the_best_left_of_its_team(
    a: np.ndarray, b: np.ndarray, length: int, seed: int
) -> None:
    slate = team_draft(a, b, length, seed)
    items = slate.items.tolist()
    assert len(items) == min(length, len(set(a.tolist()) | set(b.tolist()))) == len(set(items))
    rankings = {TEAM_A: a.tolist(), TEAM_B: b.tolist()}
    for place, (item, team) in enumerate(zip(items, slate.team.tolist(), strict=True)):
        left = [one for one in rankings[team] if one not in items[:place]]
        assert item == left[0]


@given(RANKINGS, st.integers(0, 15), st.integers(0, 2**32))
def test_two_equal_rankings_give_that_ranking_and_teams_that_differ_by_one_pick_at_most(
    a: np.ndarray, length: int, seed: int
) -> None:
    slate = team_draft(a, a, length, seed)
    assert slate.items.tolist() == a.tolist()[:length]
    assert abs(int((slate.team == TEAM_A).sum()) - int((slate.team == TEAM_B).sum())) <= 1


def test_each_team_has_every_slot_half_of_the_time() -> None:
    a, b = np.arange(0, 6, dtype=np.int32), np.arange(5, -1, -1, dtype=np.int32)
    teams = np.array([team_draft(a, b, 6, seed).team for seed in range(4_000)])
    assert np.abs(teams.mean(axis=0) - 0.5).max() < 4 * 0.5 / math.sqrt(4_000)


def test_the_same_seed_gives_the_same_slate_and_others_give_all_drafts() -> None:
    a, b = np.array([1, 2], np.int32), np.array([3, 4], np.int32)
    slates = Counter(tuple(team_draft(a, b, 4, seed).items.tolist()) for seed in range(400))
    assert set(slates) == {(1, 3, 2, 4), (1, 3, 4, 2), (3, 1, 2, 4), (3, 1, 4, 2)}
    assert min(slates.values()) > 60
    assert team_draft(a, b, 4, 9).items.tolist() == team_draft(a, b, 4, 9).items.tolist()


def test_credit_goes_to_the_team_that_picked_what_was_clicked() -> None:
    team = np.array([0, 1, 1, 0], np.int8)
    credit = Credit.of(team, [1, 0, 2.5, 0]) + Credit.of(team, [0, 1, 0, 0])
    assert (credit.a, credit.b, credit.preference) == (1.0, 3.5, 1)
    assert (Credit(2, 1).preference, Credit(1, 1).preference) == (-1, 0)


def simulated(good: np.ndarray, a: np.ndarray, b: np.ndarray, users: int, random: np.random.Generator) -> list[Credit]:
    """Users with a bias to the top who click what is good, over two slates each."""
    earned = []
    for _ in range(users):
        credit = Credit(0, 0)
        for _ in range(2):
            slate = team_draft(a, b, 5, int(random.integers(2**32)))
            seen = random.random(5) < 0.8 ** np.arange(5)
            credit += Credit.of(slate.team, seen & (random.random(5) < good[slate.items]))
        earned.append(credit)
    return earned


def test_the_better_ranking_wins_and_clicks_that_do_not_look_at_items_prefer_nobody() -> None:
    random = np.random.default_rng(1)
    good = np.linspace(0.5, 0.05, 10)
    best, worst = np.arange(10, dtype=np.int32), np.arange(9, -1, -1, dtype=np.int32)
    won = preference(simulated(good, worst, best, 400, random))
    assert won.wins_b > won.wins_a
    assert won.test.low > 0
    lost = preference(simulated(good, best, worst, 400, random))
    assert lost.test.high < 0
    assert won.wins_a + won.wins_b + won.ties == 400


def test_without_a_difference_it_errs_as_often_as_alpha_says() -> None:
    random = np.random.default_rng(2)
    best, worst = np.arange(10, dtype=np.int32), np.arange(9, -1, -1, dtype=np.int32)
    pool = simulated(np.full(10, 0.3), best, worst, 3_000, random)
    runs = 1_000
    draws = [preference([pool[row] for row in random.integers(len(pool), size=60)]).test.p_value for _ in range(runs)]
    mean = preference(pool).test
    assert abs(mean.estimate) < 4 * mean.standard_error
    # Drawn from one pool, the runs share its chance deviation.
    assert 0.02 < np.mean(np.array(draws) < 0.05) < 0.1


def test_impossible_rankings_are_refused() -> None:
    twice, fine = np.array([1, 1], np.int32), np.array([2, 3], np.int32)
    with pytest.raises(ValidationFailed, match="b holds an item twice"):
        team_draft(fine, twice, 2, 0)
    with pytest.raises(ValidationFailed, match="length"):
        team_draft(fine, fine, -1, 0)
    with pytest.raises(ValidationFailed, match="one number a slot"):
        Credit.of(np.array([0, 1], np.int8), [1.0])
