"""The click model: probabilities that are some, a truth that many draws agree with, and a seed that decides all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.recommender.experiments.simulator.clicks import ClickModel, Item, likeness
from services.recommender.experiments.simulator.effect import Served, effect_of, true_effect
from services.recommender.experiments.simulator.tally import Tally
from services.recommender.experiments.simulator.users import arrivals, liking, user_ids
from shared.errors import ValidationFailed

CATEGORIES = ("action", "comedy", "drama", "noir", "war")
item_sets = st.frozensets(st.sampled_from(CATEGORIES))
slates = st.lists(st.builds(Item, st.text("abc", min_size=1, max_size=3), item_sets), max_size=12)
models = st.builds(
    ClickModel,
    seed=st.integers(0, 2**32),
    base=st.floats(-6, 6),
    gain=st.floats(-8, 8),
    appeal=st.floats(0, 3),
    decay=st.floats(0, 3),
    tiredness=st.floats(0, 1),
)


@given(models, slates, st.text("uvw", max_size=4))
def test_probabilities_lie_from_zero_to_one_and_are_the_same_each_time(
    model: ClickModel, slate: list[Item], user_id: str
) -> None:
    found = model.probabilities(user_id, slate)
    assert found.shape == (len(slate),)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found == model.probabilities(user_id, tuple(slate))).all()


@given(models, slates)
def test_what_stands_below_changes_nothing_above(model: ClickModel, slate: list[Item]) -> None:
    whole = model.probabilities("u", slate)
    for end in range(len(slate)):
        assert model.probabilities("u", slate[:end]).tolist() == whole[:end].tolist()


@given(slates, st.integers(0, 1000))
def test_a_slate_of_duplicates_is_clicked_less_by_those_who_tire(slate: list[Item], seed: int) -> None:
    rested, tired = (ClickModel(seed=seed, tiredness=t).probabilities("u", slate) for t in (0.0, 1.0))
    assert (tired <= rested).all()
    for place, item in enumerate(slate):
        alike = any(likeness(item, above) > 0 for above in slate[:place])
        assert (tired[place] < rested[place]) == alike


@given(models, slates, st.integers(0, 10**6))
@settings(max_examples=30)
def test_purchases_follow_clicks_and_a_request_has_its_own_chance(
    model: ClickModel, slate: list[Item], number: int
) -> None:
    probabilities = model.probabilities("u", slate)
    clicked, purchased = model.draw(probabilities, number)
    assert not (purchased & ~clicked).any()
    again, _ = model.draw(probabilities, number)
    assert (clicked == again).all()


def population(seed: int, users: int, categories: tuple[tuple[str, ...], ...]) -> list[Served]:
    slate = [Item(f"i{place}", frozenset(names)) for place, names in enumerate(categories)]
    return [(user_id, slate) for user_id in user_ids(users, seed)]


ALIKE = (("drama",),) * 6
VARIED = (("drama",), ("war",), ("noir",), ("comedy",), ("action",), ("drama",))


def test_the_true_effect_is_that_of_the_mean_of_many_draws() -> None:
    model, runs = ClickModel(seed=3), 300
    arms = [population(3, 100, names) for names in (ALIKE, VARIED)]
    chances = [np.stack([model.probabilities(*one) for one in served]) for served in arms]
    rates = np.empty((runs, 2))
    for run in range(runs):
        for arm in (0, 1):
            draws = [model.draw(row, (run * 2 + arm) * 100 + place)[0] for place, row in enumerate(chances[arm])]
            rates[run, arm] = np.mean(draws)
    exact, errors = [float(one.mean()) for one in chances], rates.std(axis=0) / math.sqrt(runs)
    assert (np.abs(rates.mean(axis=0) - exact) < 3 * errors).all()
    assert true_effect(model, arms[0], arms[1]).estimate == pytest.approx(exact[1] / exact[0] - 1)


def test_variety_has_a_true_effect() -> None:
    control, treatment = population(5, 500, ALIKE), population(5, 500, VARIED)
    assert true_effect(ClickModel(seed=5), control, treatment).low > 0


def test_equal_variants_have_no_effect_at_all() -> None:
    model, served = ClickModel(seed=1), population(1, 50, VARIED)
    found = true_effect(model, served, served)
    assert found.estimate == 0.0
    assert found.low < 0 < found.high


def test_the_interval_of_the_drawn_clicks_holds_the_truth_as_often_as_it_says() -> None:
    """Users at random into arms, clicks at random: the analysis' interval against the lift over all users."""
    everybody = user_ids(4_000, 9)
    model = ClickModel(seed=9)
    slate = {arm: population(9, 1, names)[0][1] for arm, names in ((0, ALIKE), (1, VARIED))}
    chances = {(arm, user): model.probabilities(user, slate[arm]) for arm in slate for user in everybody}
    rate = [np.mean([chances[arm, user].mean() for user in everybody]) for arm in (0, 1)]
    truth, held, runs = rate[1] / rate[0] - 1, 0, 200
    random = np.random.default_rng(9)
    for run in range(runs):
        tallies = (Tally(), Tally())
        for place, user in enumerate(random.choice(everybody, 400, replace=False).tolist()):
            arm = place % 2
            clicked, purchased = model.draw(chances[arm, user], run * 1000 + place)
            tallies[arm].add(user, chances[arm, user], clicked, purchased)
        sampled = effect_of(*tallies).sampled
        held += sampled.low <= truth <= sampled.high
    assert abs(held / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)


def test_likings_do_not_depend_on_what_was_asked_before_and_differ_by_user_and_seed() -> None:
    first = liking(1, "u", "drama")
    assert [liking(1, "u", name) for name in CATEGORIES][2] == first
    assert len({first, liking(2, "u", "drama"), liking(1, "v", "drama"), liking(1, "u", "war")}) == 4
    many = [liking(1, str(n), "drama") for n in range(4_000)]
    assert np.mean(many) == pytest.approx(0.25, abs=0.02)


def test_arrivals_keep_their_rate_and_come_from_a_seed() -> None:
    users = user_ids(50, 1)
    planned = list(arrivals(users, 2_000, 100.0, 1))
    assert planned == list(arrivals(users, 2_000, 100.0, 1))
    assert planned != list(arrivals(users, 2_000, 100.0, 2))
    assert planned[-1].at_s == pytest.approx(20, rel=0.1)
    assert [one.number for one in planned] == list(range(2_000))
    assert {one.at_s for one in arrivals(users, 10, 0.0, 1)} == {0.0}


@pytest.mark.parametrize("broken", [{"tiredness": 1.5}, {"decay": -1.0}, {"base": math.nan}, {"purchase": -0.1}])
def test_an_impossible_model_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed):
        ClickModel(seed=1, **broken)


def test_what_is_known_of_users_and_items_replaces_what_the_seed_draws() -> None:
    slate = [Item("good", frozenset(["drama"])), Item("bad", frozenset(["war"]))]
    model = ClickModel(
        seed=1,
        decay=0.0,
        tiredness=0.0,
        taste=lambda user, category: float((user, category) == ("u", "drama")),
        worth=lambda item: 1.0 if item == "good" else -1.0,
    )
    assert model.probabilities("u", slate) == pytest.approx([1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(3.0))])
    assert "taste" not in model.parameters
