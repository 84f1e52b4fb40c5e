"""Whatever is late, the slate is not; and who was late is named."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from services.recommender.domain import Rung
from services.recommender.pipeline.budget import Budget
from services.recommender.pipeline.quality import EVERY, LEAST, QualityFactor
from services.recommender.pipeline.waiting import Stragglers
from shared.contracts.history import UserHistory
from tests.unit.recommender import virtual_time
from tests.unit.recommender.pipeline_world import FakeUser, World, features, given_up, history, items, miss

LAST_S = 0.068 - 0.006  # deadline less reserve
TICK = 1e-6


def test_a_fast_request_is_scored_by_the_model_and_gives_up_nothing() -> None:
    world = World(user=FakeUser(features(history([5, 6]))))
    slate = world.run()
    assert slate.rung is Rung.MODEL
    assert slate.degraded == ()
    assert items(slate) == sorted(items(slate), reverse=True)  # the model's best is the highest index
    assert world.took_s == pytest.approx(0.001 + 0.001 + 0.003, abs=TICK)
    assert {"features", "encode", "retrieve", "merge", "filter", "rank", "blend", "select"} <= set(slate.stage_ms)
    assert slate.last_event_id == "e-2"
    assert (slate.release, slate.model_version, slate.index_version) == ("r1", "m1", "i1")


def test_a_late_encoder_is_left_out_and_named_while_the_other_sources_are_served() -> None:
    world = World(user=FakeUser(features(history([5]))))
    world.inference.encode_s = 10.0
    slate = world.run()
    assert ("encode", "deadline", "other_sources") in given_up(slate)
    assert slate.rung is Rung.MODEL
    assert "behaviour" in {source for row in slate.items.rows() for source in row.retrieve_ids}
    assert world.took_s < LAST_S


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("hangs", ["features", "encode", "rank", "everything"])
def test_the_deadline_is_kept_whoever_hangs_and_even_if_it_will_not_stop(hangs: str, obeys: bool) -> None:
    world = World(user=FakeUser(features(history([5, 6]))))
    world.inference.obeys = obeys
    if hangs in ("features", "everything"):
        world.user.takes_s = 10.0
    if hangs in ("encode", "everything"):
        world.inference.encode_s = 10.0
    if hangs in ("rank", "everything"):
        world.inference.rank_s = 10.0
    slate = world.run()
    assert world.took_s <= LAST_S + TICK
    assert len(slate.items) == 10
    assert slate.degraded


@pytest.mark.parametrize("deadline_s", [0.0, 0.005, 0.01, 0.03, 1.0])
def test_every_deadline_is_kept_by_shrinking_work(deadline_s: float) -> None:
    world = World()
    world.inference.rank_s = 10.0
    slate = world.run(deadline_s)
    assert world.took_s <= max(deadline_s - 0.006, 0.0) + TICK
    assert len(slate.items) == 10


def test_inference_is_told_no_more_time_than_remains() -> None:
    world = World()
    world.run()
    assert 0 < world.inference.encoded[0].deadline_us < LAST_S * 1e6 / 2
    assert 0 < world.inference.ranked[0].deadline_us < (LAST_S - 0.002) * 1e6


def test_a_broken_source_is_dropped_with_its_cause() -> None:
    world = World()
    assert world.index is not None
    world.index.error = RuntimeError("the index broke")
    slate = world.run()
    assert ("source.user_vector", "internal", "dropped") in given_up(slate)
    assert len(slate.items) == 10


def test_dead_feature_stores_leave_defaults_and_say_so() -> None:
    world = World(user=FakeUser(features(misses=(miss("redis", "unavailable"), miss("database", "timeout")))))
    assert given_up(world.run()) >= {
        ("features.redis.history", "unavailable", "database"),
        ("features.database.history", "timeout", "defaults"),
    }


def test_a_visitor_whom_nobody_knows_yet_is_no_degradation() -> None:
    assert World(user=FakeUser(features(misses=(miss("redis", "absent"),)))).run().degraded == ()


def test_without_personalization_no_history_is_read_and_no_latents_of_the_user_are_touched() -> None:
    world = World(user=FakeUser(features(history([5]))))
    slate = world.run(personalized=False)
    assert world.user.asked == 0
    assert slate.last_event_id is None
    assert len(world.inference.ranked[0].history) == 0
    assert world.inference.ranked[0].user_key.startswith("v:~anyone-")


def test_work_that_ignores_being_stopped_is_owned_until_it_ends() -> None:
    async def scenario(clock: object) -> None:
        stragglers, go = Stragglers(), asyncio.Event()

        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await go.wait()

        with pytest.raises(TimeoutError):
            await stragglers.within(stubborn(), 0.01)
        await asyncio.sleep(0)
        assert len(stragglers) == 1
        go.set()
        await asyncio.sleep(0.001)
        assert len(stragglers) == 0

    virtual_time.run(scenario)


def test_a_budget_gives_shares_of_what_remains_and_never_a_negative_one() -> None:
    now = [0.0]
    budget = Budget(0.068, 0.008, lambda: now[0])
    assert budget.share(0.5) == pytest.approx(0.03)
    now[0] = 0.04
    assert budget.share(0.5) == pytest.approx(0.01)
    assert budget.all_but(0.002) == pytest.approx(0.018)
    now[0] = 1.0
    assert (budget.remaining(), budget.share(0.5), budget.all_but(0.002)) == (0.0, 0.0, 0.0)


def test_candidates_shrink_while_ranking_is_slow_and_come_back_slowly() -> None:
    quality = QualityFactor(usual_s=0.03)
    for _ in range(EVERY):
        quality.observe(0.029, 0.03)
    assert quality.factor == pytest.approx(0.8)
    assert quality.limit(500) == 400
    for _ in range(100 * EVERY):
        quality.observe(0.03, 0.03)
    assert quality.factor == LEAST
    for _ in range(2 * EVERY):
        quality.observe(0.001, 0.03)
    assert LEAST < quality.factor < 0.3
    for _ in range(100 * EVERY):
        quality.observe(0.001, 0.03)
    assert quality.factor == 1.0


def test_a_caller_with_a_tiny_deadline_takes_no_candidates_from_the_others() -> None:
    quality = QualityFactor(usual_s=0.03)
    for _ in range(10 * EVERY):
        quality.observe(0.002, 0.002)
    assert quality.factor == 1.0


def test_a_slow_engine_soon_gets_fewer_candidates_in_retrieval_order() -> None:
    world = World()
    world.inference.rank_s = 0.055
    slates = world.run_many(3 * EVERY)
    first, last = world.inference.ranked[0].candidate, world.inference.ranked[-1].candidate
    assert len(last) < len(first)
    assert np.array_equal(first[: len(last)], last)
    assert slates[-1].rung is Rung.PARTIAL
    assert ("rank", "latency", "fewer_candidates") in given_up(slates[-1])


def test_an_empty_history_is_served_like_any_other() -> None:
    slate = World(user=FakeUser(features(UserHistory("u:ann")))).run()
    assert slate.rung is Rung.MODEL
    assert slate.last_event_id is None
