"""Experiments on the serving routes: who may manage them, what answer and journal say, frozen pages, failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from services.recommender.domain import Query, Rung, UserFeatures
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.live import Live, LiveExperiment, Shipped
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving.enroller import Enroller
from shared.contracts.history import UserHistory
from tests.unit.experiments.written import registered
from tests.unit.recommender.serving_app import SCHEMA, World, slate_of, state, world
from tests.unit.web.example import KEYS


class Reading:
    """A Redis that holds `extras`, or hangs."""

    def __init__(self) -> None:
        self.extras: dict[str, bytes] = {}
        self.hangs = False
        self.asked: list[tuple[str, ...]] = []

    async def hydrate(self, query: Query, snapshot: Any, timeout_s: float) -> UserFeatures:
        self.asked.append(query.extra_keys)
        if self.hangs:
            await asyncio.Event().wait()
        return UserFeatures(UserHistory(query.user_key), extras=self.extras)


def enrolling(w: World, *, status: Status = Status.RUNNING, **changes: Any) -> tuple[Enroller, Reading]:
    one = registered(**changes)
    live = LiveExperiment.of(replace(one, definition=replace(one.definition, status=status)), SCHEMA)
    picture, reading = Live.of([live], (), SCHEMA.scenes), Reading()
    redis: Any = w.redis
    return Enroller(lambda: picture, reading, redis, w.holder, w.tasks, QueryBuilder(SCHEMA).filter), reading


def test_an_answer_names_variants_and_the_journal_keeps_the_exposure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.experiments.inner, _ = enrolling(w)
            answer = await w.recommend(user_id="ann", context={"silkrec_simulated": True})
            (row,) = answer["experiments"]
            assert row["key"] == "mmr"
            kept = await w.journal.find(answer["recommendation_id"])
            assert kept is not None
            assert [(one["variant"], one["unit"], one["simulated"]) for one in kept.experiments] == [
                (row["variant"], "u:ann", True)
            ]
            assert set(kept.measures) == {"ild", "novelty"}
            assert kept.request["experiments"] == [["mmr", 0, row["variant"]]]
            assert (await w.recommend())["experiments"] == [], "a visitor is no unit of it"
            diverse = {query.user_key: query.diversity for query in w.pipeline.queries}
            assert diverse["u:ann"] == (0.6 if row["variant"] == "diverse" else 0.0)
            batch = await w.client.post(
                "/v1/recommend:batch", json={"requests": [{"user_id": "ann", "count": 2}, {"user_id": "bob"}]}
            )
            assert [len(one["experiments"]) for one in batch.json()["slates"]] == [1, 1]
            ranked = await w.client.post("/v1/rank", json={"user_id": "ann", "input_list": ["item-1"]})
            assert len(ranked.json()["experiments"]) == 1

    asyncio.run(scenario())


def test_who_is_held_out_meets_no_variant_nor_what_was_shipped_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            parts = [{"key": "held_out", "weight": 0.5}, {"key": "rest", "weight": 0.5}]
            quarter, mmr = registered("quarter", variants=parts, holdout={}), registered()
            running = [
                LiveExperiment.of(replace(one, definition=replace(one.definition, status=Status.RUNNING)), SCHEMA)
                for one in (mmr, quarter)
            ]
            shipped = Shipped("older", "v", frozenset(), {"ranker": "retrieval"}, at_us=1)
            picture, redis, builder = Live.of(running, [shipped], SCHEMA.scenes), w.redis, QueryBuilder(SCHEMA)
            w.experiments.inner = Enroller(
                lambda: picture, Reading(), cast("Any", redis), w.holder, w.tasks, builder.filter
            )
            met = set()
            for number in range(20):
                user = f"user-{number}"
                answer = await w.recommend(user_id=user)
                variants = {row["key"]: row["variant"] for row in answer["experiments"]}
                rankers = [query.ranker for query in w.pipeline.queries if query.user_key == f"u:{user}"]
                held = variants["quarter"] == "held_out"
                assert ("mmr" in variants, rankers) == ((False, ["model"]) if held else (True, ["retrieval"]))
                kept = await w.journal.find(answer["recommendation_id"])
                assert kept is not None
                assert {one["experiment"] for one in kept.experiments} == set(variants), "the holdout is reported too"
                met.add(held)
            assert met == {True, False}

    asyncio.run(scenario())


def test_a_frozen_page_is_not_continued_under_another_variant(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.experiments.inner, _ = enrolling(w, forced={"ann": "control"})
            first = await w.recommend(user_id="ann", count=5)
            await w.written_behind()
            again = await w.recommend(user_id="ann", count=5, cursor=first["next_cursor"])
            assert len(w.pipeline.queries) == 1
            w.experiments.inner, _ = enrolling(w, forced={"ann": "diverse"})
            moved = await w.recommend(user_id="ann", count=5, cursor=first["next_cursor"])
            assert len(w.pipeline.queries) == 2
            assert moved["experiments"] == [{"key": "mmr", "variant": "diverse"}]
            assert again["experiments"] == [{"key": "mmr", "variant": "control"}]

    asyncio.run(scenario())


def test_a_request_that_fails_is_noted_for_its_variant(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, serving=state(0)) as w:
            w.experiments.inner, _ = enrolling(w)
            w.pipeline.script = lambda _query: slate_of(np.empty(0, np.int32), rung=Rung.NOTHING)
            problem = await w.refused(user_id="ann")
            assert problem["code"] == "nothing_to_serve"
            assert w.journal.waiting == 1
            (name,) = w.journal._places
            kept = await w.journal.find(name)
            assert kept is not None
            assert (kept.failed, len(kept.experiments)) == (True, 1)

    asyncio.run(scenario())


def test_sticky_buckets_come_with_the_features_and_a_redis_that_hangs_costs_the_experiment_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.experiments.inner, reading = enrolling(w, fallback_unit="visitor")
            reading.extras = {"silkrec:sb1:v:v1": b'{"mmr__0": "diverse"}', "silkrec:sb1:u:ann": b"damaged"}
            answer = await w.recommend(user_id="ann")
            assert answer["experiments"] == [{"key": "mmr", "variant": "diverse"}]
            await w.written_behind()
            assert w.redis.values["silkrec:sb1:u:ann"] == {"": b'{"mmr__0":"diverse"}'}
            assert reading.asked == [("silkrec:sb1:u:ann", "silkrec:sb1:v:v1")]
            assert w.pipeline.queries[-1].user is not None, "the pipeline reads them no second time"
            reading.hangs = True
            late = await w.recommend(user_id="ann", deadline_ms=60)
            assert late["experiments"] == []
            assert late["took_ms"] < 60
            assert (await w.recommend(user_id="ann", personalized=False))["experiments"] == []
            assert len(reading.asked) == 2, "without personalization nothing of the user is read"

    asyncio.run(scenario())


@pytest.mark.parametrize("role", ["client", "server"])
def test_experiments_are_for_admin_keys(tmp_path: Path, role: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, keys=KEYS) as w:
            headers = {"authorization": f"Bearer sk_{role}_x"}
            for answer in (
                await w.client.get("/v1/experiments", headers=headers),
                await w.client.post("/v1/experiments/mmr:start", headers=headers),
                await w.client.post("/v1/experiments/mmr:ship", headers=headers, json={"variant": "diverse"}),
            ):
                assert answer.status_code == 403
                assert answer.headers["content-type"] == "application/problem+json"

    asyncio.run(scenario())
