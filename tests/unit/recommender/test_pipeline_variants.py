"""What a variant may set of the pipeline, in the real pipeline."""

from __future__ import annotations

from services.recommender.domain import Rung
from tests.unit.recommender.pipeline_world import FakeUser, World, features, given_up, history, items


def test_sources_that_a_variant_left_out_propose_nothing_and_are_no_failure() -> None:
    world = World(user=FakeUser(features(history([0, 19]))))
    slate = world.run(count=5, sources=frozenset({"popular", "fresh"}))
    named = {name for row in slate.items.rows() for name in row.retrieve_ids}
    assert named <= {"popular", "fresh", "backfill"}
    assert given_up(slate) == set()
    assert slate.items.sources == World().run(count=1).items.sources, "bits keep their meaning"


def test_the_order_of_retrieval_can_be_asked_for_and_gives_nothing_up() -> None:
    slate = World(user=FakeUser(features(history([0, 19])))).run(count=5, ranker="retrieval")
    assert slate.rung is Rung.RETRIEVAL
    assert slate.items.scores.shape[1] == 0
    assert given_up(slate) == set()


def test_a_variant_sets_how_many_are_ranked() -> None:
    world = World(user=FakeUser(features(history([0, 19]))))
    assert world.run(count=3, candidates=7).items.actions == world.run(count=3).items.actions
    (few, _all) = (world.inference.ranked[0], world.inference.ranked[1])
    assert len(few.candidate) == 7


def test_features_that_were_read_before_are_not_read_again() -> None:
    known = features(history([0, 19]))
    world = World(user=FakeUser(features()))
    slate = world.run(count=5, user=known, user_ms=1.5)
    assert slate.stage_ms["features"] == 1.5
    assert items(slate) == items(World(user=FakeUser(known)).run(count=5))
