"""What is on a slate: filters counted and explained, promotions placed, nothing twice, exact propensities."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from services.recommender.components.sources.searching import KEPT as KEPT_NEIGHBOURS
from services.recommender.components.sources.searching import MAX_WAITING, Searcher
from services.recommender.domain import Rung
from services.recommender.fresh import KEPT, FreshTable
from shared.errors import Overloaded
from shared.settings.roots import RecommenderSettings
from tests.unit.recommender.pipeline_world import (
    DISLIKE,
    ITEMS,
    PURCHASE,
    FakeIndex,
    FakeUser,
    World,
    catalogue,
    expression,
    features,
    given_up,
    history,
    items,
    popularity,
    promotion,
    row,
)


def test_no_item_is_on_a_slate_twice_however_many_sources_propose_it() -> None:
    slate = World(user=FakeUser(features(history([0, 19])))).run(count=50)
    assert len(set(items(slate))) == len(slate.items) == 50
    several = [one for one in slate.items.rows() if len(one.retrieve_ids) > 1]
    assert several
    assert all(len(one.reasons) >= 1 for one in several)


def test_filters_count_what_they_remove_and_explain_it_when_asked() -> None:
    world = World(user=FakeUser(features(history([30], PURCHASE))))
    world.catalogue.apply([row(20, is_hidden=True, revision=2)])
    slate = world.run(
        filter=expression("price < 45"), exclude=np.array([21], np.int32), explain=True, count=60, personalized=True
    )
    reasons = {(removal.item_index, removal.stage) for removal in slate.removed}
    assert {(20, "servable"), (21, "excluded"), (30, "seen")} <= reasons
    assert {item for item, stage in reasons if stage == "filter"} <= set(range(45, ITEMS))
    assert slate.filtered["filter", "price < 45"] == sum(stage == "filter" for _, stage in reasons)
    assert not set(items(slate)) & ({20, 21, 30} | set(range(45, ITEMS)))


def test_removals_are_counted_without_explain_but_not_listed() -> None:
    slate = World().run(filter=expression("price < 30"))
    assert slate.filtered["filter", "price < 30"] > 0
    assert slate.removed == ()


def test_the_scenes_filter_holds_beside_the_requests_own() -> None:
    slate = World().run(scene_filter=expression('category = "shoes"'), filter=expression("price > 10"), count=60)
    assert all(item % 2 == 0 and item > 10 for item in items(slate))


def test_seen_items_stay_when_the_scene_does_not_hide_them() -> None:
    world = World(user=FakeUser(features(history([25], PURCHASE))))
    assert 25 in items(world.run(hide_seen=False, count=60))
    assert 25 not in items(world.run(hide_seen=True, count=60))


def test_a_disliked_item_is_no_seed() -> None:
    world = World(user=FakeUser(features(history([5], DISLIKE))), model=None)
    assert all("behaviour" not in one.retrieve_ids for one in world.run(count=60).items.rows())


def test_a_filter_that_breaks_lets_nothing_pass() -> None:
    class Broken:
        text = "broken"

        def mask(self, *_: object) -> np.ndarray:
            raise RuntimeError("a bug")

    slate = World().run(scene_filter=Broken())
    assert len(slate.items) == 0
    assert ("scene_filter", "internal", "nothing_passes") in given_up(slate)


def test_an_item_deleted_while_the_request_ranks_is_not_served_and_its_place_is_filled() -> None:
    world = World()
    world.inference.before_answer = lambda: world.catalogue.apply([row(49, deleted=True, revision=2)])
    slate = world.run()
    assert 49 in world.inference.ranked[0].candidate
    assert 49 not in items(slate)
    assert len(slate.items) == 10


def test_a_short_slate_is_filled_from_behind_the_cut_and_then_with_popular_items() -> None:
    world = World(recommender=RecommenderSettings(candidates=3), popular=popularity(40))
    slate = world.run(count=8)
    assert len(slate.items) == 8
    assert len(world.inference.ranked[0].candidate) == 3
    assert slate.rung is Rung.MODEL
    narrow = World(recommender=RecommenderSettings(candidates=3, per_source=2), popular=popularity(40), index=None)
    filled = narrow.run(count=8)
    assert len(set(items(filled))) == 8
    assert filled.items.rows()[-1].retrieve_ids == ("backfill",)


def test_a_filter_that_few_pass_is_filled_from_as_deep_as_needed() -> None:
    world = World(catalogue=catalogue(2600), popular=popularity(2600), index=None)
    slate = world.run(filter=expression("price >= 2595"))
    assert sorted(items(slate)) == list(range(2595, 2600))


def test_an_old_item_that_nobody_ever_met_can_fill_a_slate() -> None:
    world = World(catalogue=catalogue(KEPT + 100), popular=popularity(5), index=None)
    lost = int(np.setdiff1d(np.arange(KEPT + 100), FreshTable.from_catalogue(world.catalogue).item_index)[-1])
    slate = world.run(filter=expression(f"price = {lost}"))
    assert items(slate) == [lost]


def test_a_promotion_of_many_tests_is_looked_for_among_popular_and_new_items_only() -> None:
    long = " OR ".join(["price = 42", "price = 1250", *(f"price = -{n}" for n in range(1, 200))])
    world = World(catalogue=catalogue(2600), popular=popularity(50), index=None)
    slate = world.run(promotions=(promotion(long, percent=100),))
    promoted = [row.item_index for row in slate.items.rows() if "promotion:sale" in row.reasons]
    assert promoted == [42]


def test_a_slate_with_too_few_items_is_short_and_no_error() -> None:
    slate = World().run(filter=expression("price < 3"))
    assert sorted(items(slate)) == [0, 1, 2]


def test_context_items_bring_their_neighbours_and_are_not_shown_themselves() -> None:
    slate = World(model=None).run(context_items=np.array([40], np.int32))
    assert "context_items" in slate.items.rows()[0].retrieve_ids
    assert 40 not in items(slate)


def test_a_promotion_takes_its_position_and_says_so() -> None:
    slate = World().run(promotions=(promotion("price = 3", position=2),))
    assert items(slate)[2] == 3
    assert "promotion:sale" in slate.items.rows()[2].reasons
    assert slate.items.propensity[2] == 1.0


def test_a_promoted_item_that_no_source_proposes_is_found() -> None:
    world = World(popular=popularity(5), index=None)
    slate = world.run(promotions=(promotion("price = 42", position=0),))
    assert items(slate)[0] == 42


def test_a_percentage_of_slots_is_promoted_and_spread() -> None:
    slate = World().run(promotions=(promotion('category = "hats" AND price < 12', percent=30),))
    promoted = [one.position for one in slate.items.rows() if "promotion:sale" in one.reasons]
    assert promoted == [0, 3, 6]


def test_a_promotion_without_a_match_is_named() -> None:
    assert ("promotions", "no_match", "not_promoted") in given_up(
        World().run(promotions=(promotion("price > 1000", position=0),))
    )


MOSTLY_SHOES = 'category = "shoes" OR price < 10'  # the model's best are all even then


def test_diversity_brings_up_the_best_of_what_is_different() -> None:
    plain = World().run(filter=expression(MOSTLY_SHOES), count=4)
    assert [item % 2 for item in items(plain)] == [0, 0, 0, 0]
    mixed = World().run(filter=expression(MOSTLY_SHOES), count=4, diversity=0.9)
    assert items(mixed)[:2] == [items(plain)[0], 9]
    assert mixed.degraded == ()


def test_diversity_without_an_index_goes_by_categories() -> None:
    plain = World(index=None).run(filter=expression(MOSTLY_SHOES), count=2)
    mixed = World(index=None).run(filter=expression(MOSTLY_SHOES), count=2, diversity=0.9)
    assert items(plain) == [58, 56]
    assert items(mixed) == [58, 9]


def test_without_exploration_every_propensity_is_one_and_nothing_is_recorded() -> None:
    slate = World().run()
    assert slate.items.propensity.tolist() == [1.0] * 10
    assert slate.exploration is None


def test_exploration_is_recorded_with_pool_epsilon_and_seed_and_repeats_with_the_seed() -> None:
    asked: dict[str, Any] = {"exploration": 0.4, "promotions": (promotion("price = 3", position=1),)}
    slate, again, other = World().run(**asked), World().run(**asked), World().run(seed=8, **asked)
    assert items(slate) == items(again)
    assert items(slate) != items(other)
    record = slate.exploration
    assert record is not None
    assert (record.epsilon, record.seed) == (0.4, 7)
    assert 3 not in record.pool
    assert set(items(slate)) - {3} <= set(record.pool.tolist())
    pool = len(record.pool)
    assert slate.items.propensity[0] in (pytest.approx(0.6 + 0.4 / pool), pytest.approx(0.4 / pool))
    assert any("exploration" in one.reasons for one in slate.items.rows())


def test_rank_orders_the_given_items_and_no_others() -> None:
    given = np.array([3, 50, 17, 8], np.int32)
    world = World(user=FakeUser(features(history([5]))))
    slate = world.run(input_list=given, count=4, hide_seen=False, exploration=0.5)
    assert items(slate) == [50, 17, 8, 3]
    assert world.inference.encoded == []
    assert slate.exploration is None


def test_rank_without_inference_keeps_the_callers_order() -> None:
    world = World()
    world.inference.rank_error = RuntimeError("down")
    slate = world.run(input_list=np.array([3, 50, 17], np.int32), count=3)
    assert items(slate) == [3, 50, 17]
    assert slate.rung is Rung.RETRIEVAL


def test_rank_fills_nothing_up() -> None:
    world = World()
    world.catalogue.apply([row(50, is_hidden=True, revision=2)])
    assert items(world.run(input_list=np.array([3, 50], np.int32), count=10)) == [3]


def test_rank_accepts_more_items_than_a_slate_usually_has() -> None:
    world = World(recommender=RecommenderSettings(candidates=5))
    slate = world.run(input_list=np.arange(40, dtype=np.int32), count=40)
    assert items(slate) == list(range(39, -1, -1))


def test_a_scene_whose_actions_no_head_was_trained_for_keeps_the_retrieval_order() -> None:
    world = World()
    slate = world.run(weights={"watch": 1.0})
    assert items(slate) == world.inference.ranked[0].candidate[:10].tolist()
    assert ("blend", "no_trained_action", "retrieval_order") in given_up(slate)


def test_a_search_that_would_hold_up_the_event_loop_runs_in_a_thread() -> None:
    async def scenario() -> tuple[int, int]:
        searcher = Searcher(inline_rows=100)
        here = await searcher.run(100, threading.get_ident)
        there = await searcher.run(101, threading.get_ident)
        searcher.close()
        return here, there

    here, there = asyncio.run(scenario())
    assert here == threading.get_ident()
    assert there != here


def test_neighbours_of_the_same_items_are_searched_once_an_index() -> None:
    async def scenario() -> None:
        searcher, first, second = Searcher(), FakeIndex(), FakeIndex()
        seeds, others = np.array([5, 7], np.int32), np.array([7, 5], np.int32)
        for index in (first, second, first):
            hits = await searcher.neighbours(index, seeds, 10)
            assert await searcher.neighbours(index, seeds.copy(), 10) is hits
            await searcher.neighbours(index, others, 10)
            await searcher.neighbours(index, seeds, 11)
        assert second.searched == [[5, 7], [7, 5], [5, 7]]
        for number in range(KEPT_NEIGHBOURS + 10):
            await searcher.neighbours(first, np.array([number], np.int32), 1)
        assert len(searcher._kept) == KEPT_NEIGHBOURS
        searcher.close()

    asyncio.run(scenario())


def test_searches_that_wait_are_bounded() -> None:
    async def scenario() -> None:
        searcher, gate = Searcher(inline_rows=0, threads=1), threading.Event()
        waiting = [asyncio.ensure_future(searcher.run(1, gate.wait)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await searcher.run(1, gate.wait)
        gate.set()
        assert all(await asyncio.gather(*waiting))
        searcher.close()

    asyncio.run(scenario())
