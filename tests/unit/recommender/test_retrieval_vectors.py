"""Item vectors from behaviour, and where items stand beside a model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.recommender.retrieval.cooccurrence import Cooccurrence
from services.recommender.retrieval.placing import place
from shared.actions import ActionTable
from shared.schema import Schema

SIZE = 41


@dataclass(frozen=True)
class Columns:
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    action: npt.NDArray[np.int8]


def actions() -> ActionTable:
    return ActionTable.from_schema(Schema())


def code(sentiment: str) -> int:
    return next(action.code for action in actions() if action.sentiment == sentiment)


def shoppers(users: int = 200, seed: int = 0) -> Columns:
    """Everybody keeps to items 1 to 20 or to 21 to 40."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 12)
    item = random.integers(1, 21, len(user)) + 20 * (user % 2)
    return Columns(user.astype(np.int32), item.astype(np.int32), np.full(len(user), code("positive"), np.int8))


def test_what_the_same_people_met_stands_together() -> None:
    vectors = Cooccurrence(dim=8).vectors(shoppers(), actions(), SIZE)
    likeness = vectors[1:] @ vectors[1:].T
    assert likeness[:20, :20].mean() > likeness[:20, 20:].mean() + 0.3


def test_the_same_events_give_the_same_vectors() -> None:
    first, second = (Cooccurrence(dim=8).vectors(shoppers(), actions(), SIZE) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_large_catalogue_takes_the_same_way_twice() -> None:
    random = np.random.default_rng(5)
    user = np.repeat(np.arange(1500), 10)
    item = random.integers(0, 2000, len(user))
    events = Columns(user.astype(np.int32), item.astype(np.int32), np.full(len(user), code("positive"), np.int8))
    first, second = (Cooccurrence(dim=16).vectors(events, actions(), 2000) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()


def test_vectors_have_length_one_and_items_without_company_are_zero() -> None:
    events = shoppers()
    alone = Columns(
        np.append(events.user, 900).astype(np.int32),
        np.append(events.item, 45).astype(np.int32),
        np.append(events.action, code("positive")).astype(np.int8),
    )
    length = np.linalg.norm(Cooccurrence(dim=8).vectors(alone, actions(), 50), axis=1)
    assert np.allclose(length[1:41], 1, atol=1e-5)
    assert not length[[0, 45, 49]].any()


def test_a_dislike_places_nothing() -> None:
    events = shoppers()
    disliked = Columns(events.user, events.item, np.full_like(events.action, code("negative")))
    assert not Cooccurrence(dim=8).vectors(disliked, actions(), SIZE).any()


def test_no_events_and_two_items_are_no_fault() -> None:
    none = Columns(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int8))
    assert not Cooccurrence().vectors(none, actions(), 5).any()
    assert Cooccurrence().vectors(none, actions(), 0).shape == (0, 64)
    pair = Columns(np.zeros(2, np.int32), np.array([1, 2], np.int32), np.full(2, code("positive"), np.int8))
    assert np.isfinite(Cooccurrence().vectors(pair, actions(), 5)).all()


def test_pairs_are_bounded_and_the_strong_ones_stay() -> None:
    events = shoppers(users=400)
    bounded = Cooccurrence(dim=8, max_pairs=300)
    association = bounded.association(events, actions(), SIZE)
    assert 0 < association.nnz <= 2 * 300
    assert np.array_equal(bounded.vectors(events, actions(), SIZE), bounded.vectors(events, actions(), SIZE))


def test_behaviour_and_model_stand_side_by_side() -> None:
    model = np.random.default_rng(1).standard_normal((SIZE, 6)).astype(np.float32)
    placed = place(shoppers(), actions(), SIZE, model, Cooccurrence(dim=8))
    assert placed.item.shape == (SIZE, 14)
    assert placed.user is not None
    assert np.array_equal(placed.user, model)
    assert np.allclose(np.linalg.norm(placed.item[1:], axis=1), 1, atol=1e-5)


def test_an_item_beyond_the_model_is_found_by_its_behaviour() -> None:
    model = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    placed = place(shoppers(), actions(), SIZE, model, Cooccurrence(dim=8))
    assert placed.user is not None
    assert placed.is_placed[30:].all()
    assert not placed.user[30:].any()


def test_a_model_places_items_without_events() -> None:
    none = Columns(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int8))
    placed = place(none, actions(), 10, np.ones((8, 4), np.float32), Cooccurrence(dim=8))
    assert placed.is_placed.tolist() == [True] * 8 + [False] * 2
