"""Rung by rung: what orders a slate when the better means are gone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from services.recommender.catalogue import Catalogue
from services.recommender.components.stored import (
    BatchSlate,
    LastGood,
    batch_slate_key,
    last_good_key,
    pack_batch_slate,
    pack_last_good,
    unpack_batch_slate,
    unpack_last_good,
)
from services.recommender.domain import Rung
from shared.contracts.inference import RankRequest, RankResult
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded
from tests.unit.recommender import virtual_time
from tests.unit.recommender.pipeline_world import (
    NOW_US,
    SCHEMA,
    USER,
    FakeInference,
    FakeUser,
    World,
    features,
    given_up,
    history,
    items,
    manifest,
    popularity,
    query,
)

GONE = InferenceUnavailable("no engine is ready")
NOW_S = NOW_US // 1_000_000


def stored(**values: bytes) -> dict[str, bytes]:
    keys = {"last_good": last_good_key("r1", USER), "batch": batch_slate_key("r1", "home", USER)}
    return {keys[name]: value for name, value in values.items()}


LAST_GOOD = pack_last_good(
    LastGood(np.array([3, 25, 8], np.int32), np.array([[0.1, 0.2], [0.5, 0.9], [0.3, 0.5]], np.float32), NOW_S - 600)
)
BATCH = pack_batch_slate(BatchSlate(np.array([31, 7, 44], np.int32), np.array([3, 2, 1], np.float32), NOW_S - 600))


def dead(**values: bytes) -> World:
    world = World(user=FakeUser(features(history([5, 6]), extras=stored(**values))))
    world.inference.encode_error = world.inference.rank_error = GONE
    return world


def test_unscored_candidates_follow_the_scored_ones_in_retrieval_order() -> None:
    world = World(user=FakeUser(features(history([5, 6]))))
    world.inference.scored, world.inference.reason = 4, "deadline"
    slate = world.run()
    sent = world.inference.ranked[0].candidate.tolist()
    assert slate.rung is Rung.PARTIAL
    assert items(slate)[:4] == sorted(sent[:4], reverse=True)
    assert items(slate)[4:] == sent[4:10]
    assert ("rank", "deadline", "fewer_candidates") in given_up(slate)


def test_without_inference_the_last_good_scores_of_the_user_order_the_slate() -> None:
    slate = dead(last_good=LAST_GOOD, batch=BATCH).run()
    assert slate.rung is Rung.LAST_GOOD
    assert items(slate)[:3] == [25, 8, 3]
    assert slate.items.rows()[0].scores == pytest.approx({"click": 0.5, "purchase": 0.9}, abs=1e-3)
    assert slate.items.score[0] == pytest.approx(0.5 + 4 * 0.9, abs=1e-2)
    assert ("rank", "inference_unavailable", "last_good") in given_up(slate)


def test_then_the_batch_slate_proposes_and_orders() -> None:
    slate = dead(batch=BATCH).run()
    assert slate.rung is Rung.BATCH
    assert items(slate)[:3] == [31, 7, 44]
    assert ("rank", "inference_unavailable", "batch") in given_up(slate)
    assert slate.items.scores.shape == (10, 0)


def test_then_retrieval_scores() -> None:
    slate = dead().run()
    assert slate.rung is Rung.RETRIEVAL
    assert "behaviour" in slate.items.rows()[0].retrieve_ids
    assert ("rank", "inference_unavailable", "retrieval") in given_up(slate)
    assert slate.model_version is None


def test_then_popular_for_whom_nothing_is_known() -> None:
    world = dead()
    world.user.features = features()
    slate = world.run(count=5)
    assert slate.rung is Rung.POPULAR
    assert items(slate) == [0, 1, 2, 3, 4]
    assert ("rank", "inference_unavailable", "popular") in given_up(slate)


def test_and_nothing_at_all_only_when_even_popular_is_empty() -> None:
    world = dead()
    world.catalogue, world.popular, world.index = Catalogue(SCHEMA), popularity(0), None
    slate = world.run()
    assert slate.rung is Rung.NOTHING
    assert len(slate.items) == 0


def test_a_suite_without_a_model_serves_retrieval_and_asks_no_inference() -> None:
    world = World(user=FakeUser(features(history([5]))), model=None)
    slate = world.run()
    assert slate.rung is Rung.RETRIEVAL
    assert given_up(slate) == {("rank", "no_model", "retrieval")}
    assert world.inference.encoded == []
    assert world.inference.ranked == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Overloaded("queue full"), "overloaded"),
        (DeadlineExceeded("late"), "deadline_exceeded"),
        (TimeoutError(), "deadline"),
        (ZeroDivisionError(), "internal"),
    ],
)
def test_the_cause_of_a_step_down_says_who_is_responsible(error: Exception, cause: str) -> None:
    world = World()
    world.inference.rank_error = error
    assert "rank" in {stage for stage, why, _ in given_up(world.run()) if why == cause}


def test_the_answer_of_another_model_is_not_used() -> None:
    world = World()
    world.inference.version = "m0"
    slate = world.run()
    assert slate.rung is not Rung.MODEL
    assert ("rank", "inference_unavailable", "retrieval") in given_up(slate)


def test_an_index_of_another_model_is_not_searched_by_user_vector() -> None:
    world = World(model=manifest("m2"))
    slate = world.run()
    assert world.inference.encoded == []
    assert all("user_vector" not in row.retrieve_ids for row in slate.items.rows())
    assert slate.rung is Rung.MODEL


def test_probabilities_that_are_no_numbers_count_as_unscored() -> None:
    world = World()
    world.popular = popularity(5)

    class Broken(FakeInference):
        async def rank(self, request: RankRequest) -> RankResult:
            answer = await super().rank(request)
            answer.scores[0] = np.nan
            return answer

    world.inference = Broken()
    slate = world.run()
    assert np.isfinite(slate.items.score).all()
    assert ("rank", "not_finite", "fewer_candidates") in given_up(slate)


def test_what_the_model_said_is_kept_once_a_minute_and_is_the_next_outages_rung() -> None:
    world = World(user=FakeUser(features(history([5, 6]))))
    served = world.run()
    kept = world.redis.values[last_good_key("r1", USER)]
    outage = dead(last_good=kept)
    slate = outage.run()
    assert slate.rung is Rung.LAST_GOOD
    common = [item for item in items(served) if item in items(slate)]
    assert [item for item in items(slate) if item in common] == common
    again = World(user=FakeUser(features(history([5, 6]), extras=stored(last_good=kept))))
    again.run()
    assert again.redis.values == {}


def test_a_dead_redis_costs_the_write_and_nothing_else() -> None:
    world = World()
    world.redis.error = ConnectionError("away")
    assert world.run().degraded == ()


@pytest.mark.parametrize("asked", [{"personalized": False}, {"input_list": np.array([1, 2], np.int32)}])
def test_scores_that_are_not_the_users_own_home_scores_are_not_kept(asked: dict[str, Any]) -> None:
    world = World()
    world.run(**asked)
    assert world.redis.values == {}


@pytest.mark.parametrize(
    "blob",
    [None, b"", b"\x02" + LAST_GOOD[1:], LAST_GOOD[:-1], LAST_GOOD + b"x"],
    ids=["absent", "empty", "version", "short", "long"],
)
def test_stored_scores_of_another_version_or_length_are_a_miss(blob: bytes | None) -> None:
    assert unpack_last_good(blob) is None
    world = dead()
    world.user.features = features(history([5]), extras={} if blob is None else stored(last_good=blob))
    assert world.run().rung is Rung.RETRIEVAL


@pytest.mark.parametrize(
    "blob",
    [None, b"", b"\x02" + BATCH[1:], BATCH[:-1], BATCH + b"x"],
    ids=["absent", "empty", "version", "short", "long"],
)
def test_batch_slates_of_another_version_or_length_are_a_miss(blob: bytes | None) -> None:
    assert unpack_batch_slate(blob) is None


def test_stored_formats_come_back_as_they_went() -> None:
    last_good, batch = unpack_last_good(LAST_GOOD), unpack_batch_slate(BATCH)
    assert last_good is not None
    assert batch is not None
    assert last_good.item_index.tolist() == [3, 25, 8]
    assert np.allclose(last_good.scores[1], [0.5, 0.9], atol=1e-3)
    assert last_good.made_at_s == NOW_S - 600
    assert (batch.item_index.tolist(), batch.score.tolist()) == ([31, 7, 44], [3.0, 2.0, 1.0])


def test_a_cancelled_request_leaves_no_work_behind() -> None:
    world = World()
    world.inference.rank_s = 10.0

    async def scenario(clock: object) -> int:
        pipeline = world.make(asyncio.get_running_loop().time)
        task = asyncio.ensure_future(pipeline.run(query(deadline=asyncio.get_running_loop().time() + 1)))
        await asyncio.sleep(0.01)
        assert len(world.inference.ranked) == 1
        task.cancel()
        await asyncio.wait((task,))
        await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1 + len(pipeline.stragglers)

    assert virtual_time.run(scenario) == 0
