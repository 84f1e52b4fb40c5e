"""Invariants of the ranking arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.recommender.ranking.blending import blend, order_by, weight_vector
from services.recommender.ranking.diversity import mmr
from services.recommender.ranking.exploration import explore
from services.recommender.ranking.fusion import fuse
from services.recommender.ranking.promotions import FREE, Placement, place

SIZES = st.integers(1, 30)
EPSILONS = st.floats(0, 0.5)


@st.composite
def drafts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """`order [N]`, `pinned [slots]` with distinct candidates."""
    count = draw(SIZES)
    order = np.array(draw(st.permutations(range(count))), np.int64)
    slots = draw(st.integers(1, count))
    pinned = np.full(slots, FREE, np.int64)
    fixed = draw(st.lists(st.tuples(st.integers(0, slots - 1), st.integers(0, count - 1)), max_size=4))
    for slot, row in fixed:
        if pinned[slot] == FREE and row not in pinned:
            pinned[slot] = row
    return order, pinned


@given(drafts(), EPSILONS, st.integers(0, 2**63 - 1))
def test_a_slate_holds_each_candidate_once_and_pins_where_they_were(
    draft: tuple[np.ndarray, np.ndarray], epsilon: float, seed: int
) -> None:
    order, pinned = draft
    drawn = explore(order, pinned, epsilon, seed)
    assert len(set(drawn.rows.tolist())) == len(drawn.rows) == len(pinned)
    assert (drawn.rows[pinned != FREE] == pinned[pinned != FREE]).all()
    assert (drawn.propensity[pinned != FREE] == 1).all()
    assert set(drawn.pool.tolist()) == set(order.tolist()) - set(pinned.tolist())
    assert set(drawn.rows[pinned == FREE].tolist()) <= set(drawn.pool.tolist())


@given(drafts(), EPSILONS, st.integers(0, 2**63 - 1))
def test_the_propensity_is_the_stated_probability_and_those_of_a_slot_sum_to_one(
    draft: tuple[np.ndarray, np.ndarray], epsilon: float, seed: int
) -> None:
    order, pinned = draft
    drawn = explore(order, pinned, epsilon, seed)
    remaining = drawn.pool.tolist()
    for slot, row in enumerate(drawn.rows.tolist()):
        if pinned[slot] != FREE:
            continue
        chances = {one: epsilon / len(remaining) + (1 - epsilon) * (one == remaining[0]) for one in remaining}
        assert abs(sum(chances.values()) - 1) < 1e-9
        assert abs(chances[row] - drawn.propensity[slot]) < 1e-12
        assert drawn.propensity[slot] > 0
        remaining.remove(row)


def test_candidates_are_drawn_as_often_as_their_propensity_says() -> None:
    order, pinned = np.array([2, 0, 1, 3]), np.full(1, FREE, np.int64)
    first = [int(explore(order, pinned, 0.4, seed).rows[0]) for seed in range(20_000)]
    shares = np.bincount(first, minlength=4) / len(first)
    expected = np.array([0.1, 0.1, 0.7, 0.1])
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.7 * 0.3 / len(first))


@given(drafts())
def test_without_exploration_the_order_is_kept(draft: tuple[np.ndarray, np.ndarray]) -> None:
    order, pinned = draft
    rows = explore(order, pinned, 0.0, 1).rows[pinned == FREE]
    unpinned = order[~np.isin(order, pinned)]
    assert rows.tolist() == unpinned[: len(rows)].tolist()


@given(st.data(), SIZES, st.integers(1, 6), st.floats(0, 1))
def test_mmr_is_a_permutation_that_begins_with_the_best(
    data: st.DataObject, count: int, dimensions: int, diversity: float
) -> None:
    numbers = st.floats(-10, 10, width=32)
    relevance = -np.sort(-data.draw(arrays.arrays(np.float32, count, elements=numbers)))
    vectors = data.draw(arrays.arrays(np.float32, (count, dimensions), elements=numbers))
    depth = data.draw(st.integers(0, count + 3))
    order = mmr(relevance, vectors, diversity, depth)
    assert sorted(order.tolist()) == list(range(count))
    assert relevance[order[0]] == relevance[0] or diversity == 1
    rest = order[max(depth, 0) :]
    assert (np.diff(rest) > 0).all() or depth == 0
    if diversity == 0:
        assert order.tolist() == list(range(count))


@given(st.data(), SIZES, st.integers(1, 5))
def test_a_blend_rises_with_every_probability_that_the_scene_likes(
    data: st.DataObject, count: int, actions: int
) -> None:
    unit = st.floats(0, 1, width=32)
    scores = data.draw(arrays.arrays(np.float32, (count, actions), elements=unit))
    names = [f"a{number}" for number in range(actions)]
    weights = weight_vector({name: data.draw(st.floats(0, 10, width=32)) for name in names}, names)
    more = np.minimum(scores + data.draw(arrays.arrays(np.float32, (count, actions), elements=unit)), 1)
    assert (blend(more, weights) >= blend(scores, weights) - 1e-4).all()


def test_a_weight_without_a_trained_head_and_a_head_without_a_weight_count_nothing() -> None:
    assert weight_vector({"click": 1.0, "buy": 4.0}, ["click", "watch"]).tolist() == [1.0, 0.0]


@given(st.data(), SIZES)
def test_known_scores_come_first_and_ties_keep_their_order(data: st.DataObject, count: int) -> None:
    score = data.draw(arrays.arrays(np.float32, count, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
    known = data.draw(arrays.arrays(np.bool_, count))
    order = order_by(score, known).tolist()
    keys = [(not known[row], -score[row] if known[row] else 0, row) for row in order]
    assert keys == sorted(keys)


@given(st.lists(st.lists(st.integers(0, 20), unique=True, max_size=15), min_size=1, max_size=7))
def test_fusing_keeps_every_item_once_with_all_its_sources(rankings: list[list[int]]) -> None:
    columns = [np.array(ranking, np.int32) for ranking in rankings]
    items, bits, score = fuse(columns, [1.0] * len(rankings))
    assert sorted(items.tolist()) == sorted({item for ranking in rankings for item in ranking})
    assert (np.diff(score) <= 1e-9).all()
    for item, mask in zip(items.tolist(), bits.tolist(), strict=True):
        assert [bool(mask >> number & 1) for number in range(len(rankings))] == [item in one for one in rankings]


@given(st.data(), SIZES)
def test_promotions_pin_only_matching_candidates_and_each_once(data: st.DataObject, count: int) -> None:
    slots = data.draw(st.integers(1, count))
    order = np.array(data.draw(st.permutations(range(count))), np.int64)
    placements = [
        Placement(
            data.draw(arrays.arrays(np.bool_, count)),
            *data.draw(st.one_of(st.tuples(st.integers(0, 40), st.none()), st.tuples(st.none(), st.floats(0, 100)))),
        )
        for _ in range(data.draw(st.integers(0, 4)))
    ]
    pinned, by = place(order, placements, slots)
    taken = pinned[pinned != FREE]
    assert len(set(taken.tolist())) == len(taken)
    assert ((pinned == FREE) == (by == FREE)).all()
    for row, number in zip(pinned.tolist(), by.tolist(), strict=True):
        assert row == FREE or placements[number].matches[row]


def test_a_position_that_is_taken_moves_to_the_next_free_slot() -> None:
    everything = np.ones(5, np.bool_)
    pinned, by = place(np.arange(5), [Placement(everything, 1), Placement(everything, 1)], 4)
    assert pinned.tolist() == [FREE, 0, 1, FREE]
    assert by.tolist() == [FREE, 0, 1, FREE]
