"""Neighbours that are kept are the ones that a search gives."""

from __future__ import annotations

import numpy as np

from services.recommender.retrieval.near import NearItems
from shared.contracts.history import Float32, Int32, Int64


class Space:
    """Item n is near n+1, n+2 …; remembers what was searched."""

    def __init__(self) -> None:
        self.searched: list[list[int]] = []

    def __call__(self, seeds: Int32, each: int) -> tuple[Float32, Int64]:
        self.searched.append(seeds.tolist())
        near = seeds[:, None].astype(np.int64) + np.arange(1, each + 1)
        return (1 / near).astype(np.float32), near


def seeds(*items: int) -> Int32:
    return np.array(items, np.int32)


def test_only_what_was_not_asked_before_is_searched_and_the_order_is_that_of_the_seeds() -> None:
    space = Space()
    near = NearItems(space)
    near.of(seeds(5, 9), 3)
    scores, found = near.of(seeds(1, 9, 2, 5), 3)
    assert space.searched == [[5, 9], [1, 2]]
    expected = Space()(seeds(1, 9, 2, 5), 3)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


def test_another_depth_is_another_search_and_the_oldest_go_first() -> None:
    space = Space()
    near = NearItems(space, kept=2)
    for items, each in (((1,), 3), ((1,), 4), ((2,), 3), ((1,), 3), ((2,), 3)):
        assert near.of(seeds(*items), each)[1].shape == (1, each)
    assert space.searched == [[1], [1], [2], [1]]
