"""POST /v1/recommend: the answer's fields, validation, filters, deadline, guard and access."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from services.recommender.domain import Rung
from services.recommender.serving import ServingState
from shared.errors import DependencyError
from tests.unit.recommender.serving_app import EXPLAINED, SCHEMA, World, slate_of, state, world
from tests.unit.web.example import KEYS, SECRET

ANSWER_FIELDS = {
    "recommendation_id",
    "items",
    "next_cursor",
    "experiments",
    "release",
    "model_version",
    "index_version",
    "last_event_id",
    "degraded_stages",
    "stage_ms",
    "took_ms",
}
ITEM_FIELDS = {"item_id", "position", "score", "scores", "retrieve_ids", "reason", "propensity", "properties"}


def test_the_answer_has_exactly_the_fields_of_the_api(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await w.recommend(count=3, return_properties=["title", "price", "item_id"])
        assert set(answer) == ANSWER_FIELDS
        assert [item["item_id"] for item in answer["items"]] == ["item-59", "item-58", "item-57"]
        first = answer["items"][0]
        assert set(first) == ITEM_FIELDS
        assert first["position"] == 0
        assert first["scores"] == {"click": 0.25, "purchase": 0.25}
        assert first["retrieve_ids"] == ["user_vector"]
        assert first["reason"] == ["because_you_saw"]
        assert first["properties"] == {"title": "Title 59", "price": 59.0, "item_id": "item-59"}
        assert answer["experiments"] == []
        assert answer["last_event_id"] == "event-9"
        assert answer["stage_ms"] == {"retrieval": 1.5, "rank": 4.25}
        assert answer["took_ms"] > 0

    asyncio.run(scenario())


def test_a_request_becomes_a_query_with_the_scene_settled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            await w.recommend(
                user_id="ann",
                scene="cheap",
                count=5,
                item_ids=["item-3", "item-4", "item-3", "never-seen"],
                exclude_item_ids=["item-59"],
                filter="brand = $brand",
                filter_values={"brand": "acme"},
                promotions=[{"name": "new", "filter": "price > 10", "position": 0}],
                diversity=0.5,
                personalized=False,
                context={"device": "phone", "logged_in": True},
                explain=True,
            )
            (query,) = w.pipeline.queries
        assert query.user_key == "u:ann"
        assert query.weights == SCHEMA.scenes["cheap"].weights
        assert query.context_items.tolist() == [3, 4]
        assert query.exclude.tolist() == [59]
        assert query.filter is not None
        assert query.filter.text == "brand = $brand"
        assert query.scene_filter is not None
        assert query.promotions[0].position == 0
        assert query.diversity == 0.5
        assert not query.personalized
        assert query.explain
        assert query.count >= 5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"surprise": 1}, "/surprise"),
        ({"count": "10"}, "/count"),
        ({"count": True}, "/count"),
        ({"count": 0}, "/count"),
        ({"count": 101}, "/count"),
        ({"visitor_id": ""}, "/visitor_id"),
        ({"visitor_id": "a/b"}, "/visitor_id"),
        ({"visitor_id": "a\n"}, "/visitor_id"),
        ({"deadline_ms": 4}, "/deadline_ms"),
        ({"deadline_ms": 1001}, "/deadline_ms"),
        ({"diversity": 1.5}, "/diversity"),
        ({"item_ids": "item-1"}, "/item_ids"),
        ({"exclude_item_ids": ["ok", "?"]}, "/exclude_item_ids/1"),
        ({"context": {"nested": {"a": 1}}}, "/context/nested"),
        ({"return_properties": ["title", "colour"]}, "/return_properties/1"),
        ({"promotions": [{"name": "a", "filter": "price > 1"}]}, "/promotions/0"),
        ({"promotions": [{"name": "a", "filter": "price >", "position": 1}]}, "/promotions/0/filter"),
        ({"filter": "price < $limit"}, "/filter_values/limit"),
        ({"filter": "price < $limit", "filter_values": {"limit": "x"}}, "/filter_values/limit"),
        ({"cursor": "nonsense"}, "/cursor"),
        ({"cursor": "ünknown"}, "/cursor"),
    ],
)
def test_a_bad_request_is_a_422_that_points_at_the_place(tmp_path: Path, body: dict[str, Any], pointer: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            problem = await w.refused(**body)
            assert problem["status"] == 422, problem
            assert pointer in [fault["pointer"] for fault in problem["errors"]], problem
            assert w.pipeline.queries == []

    asyncio.run(scenario())


def test_somebody_must_be_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            problem = await w.refused(visitor_id=None)
            assert problem["status"] == 422
            assert "user_id or visitor_id" in problem["detail"]

    asyncio.run(scenario())


def test_a_bad_filter_points_at_the_character(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            problem = await w.refused(filter="price < 5 AND colour = 1")
            assert (problem["status"], problem["code"]) == (422, "filter_invalid")
            (fault,) = problem["errors"]
            assert fault["pointer"] == "/filter"
            assert fault["position"] == len("price < 5 AND ")

    asyncio.run(scenario())


def test_an_unknown_scene_is_a_404_that_names_the_declared_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            problem = await w.refused(scene="basement")
            assert problem["status"] == 404
            assert "cheap, home" in problem["detail"]

    asyncio.run(scenario())


def test_validate_only_checks_everything_and_ranks_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await w.recommend(validate_only=True, filter="price < 5")
            assert answer["items"] == []
            assert set(answer) >= ANSWER_FIELDS
            assert (await w.refused(validate_only=True, filter="price <"))["status"] == 422
            assert w.pipeline.queries == []
            assert w.journal.waiting == 0

    asyncio.run(scenario())


def test_a_slate_is_in_the_journal_when_its_answer_arrives(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.script = lambda query: slate_of(query_order(query.count), **EXPLAINED)
            answer = await w.recommend(count=4, explain=True, user_id="ann", user_token="secret-token")
            kept = await w.journal.find(answer["recommendation_id"])
        assert kept is not None
        assert kept.user_key == "u:ann"
        assert kept.seed == 77
        assert kept.degraded == [{"stage": "rank", "cause": "deadline", "fallback": "partial"}]
        assert kept.request["filtered"] == [[7, "filter", "price < 5"], [8, "seen", "hide_seen"]]
        assert kept.request["exploration"] == {"epsilon": 0.1, "pool": [1, 2, 3]}
        assert "user_token" not in kept.request["body"]
        assert answer["filtered"][0] == {"item_id": "item-7", "stage": "filter", "rule": "price < 5"}

    asyncio.run(scenario())


def query_order(count: int) -> Any:
    import numpy as np

    return np.arange(count, dtype=np.int32)


def test_a_hanging_pipeline_is_answered_with_popular_before_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.hang = asyncio.Event()
            started = time.monotonic()
            answer = await w.recommend(count=5, deadline_ms=60, exclude_item_ids=["item-1"])
            assert time.monotonic() - started < 1.0
            assert [item["item_id"] for item in answer["items"]] == ["item-0", "item-2", "item-3", "item-4", "item-5"]
            assert answer["degraded_stages"] == [
                {"stage": "pipeline", "cause": "deadline_exceeded", "fallback": "popular"}
            ]
            assert b'guard_answers_total{route="recommend"} 1.0' in w.metrics.render()

    asyncio.run(scenario())


def test_the_guard_obeys_the_scene_filter_and_the_request_filter(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.error = RuntimeError("a bug")
            answer = await w.recommend(scene="cheap", count=100, filter="price > 40")
            assert [item["item_id"] for item in answer["items"]] == [f"item-{n}" for n in range(41, 50)]
            assert answer["degraded_stages"][0]["cause"] == "internal"

    asyncio.run(scenario())


def test_a_dependency_failing_inside_the_pipeline_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.error = DependencyError("inference is away")
            answer = await w.recommend()
            assert answer["degraded_stages"][0]["cause"] == "dependency_unavailable"
            assert len(answer["items"]) == 10

    asyncio.run(scenario())


def empty_state() -> ServingState:
    return state(0)


def test_an_empty_installation_says_so_with_a_503(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, serving=empty_state()) as w:
            w.pipeline.script = lambda _query: slate_of(query_order(0), rung=Rung.NOTHING)
            problem = await w.refused()
            assert (problem["status"], problem["code"]) == (503, "nothing_to_serve")
            assert (await w.client.get("/ready")).status_code == 200

    asyncio.run(scenario())


def test_a_slate_that_filters_emptied_is_an_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.script = lambda _query: slate_of(query_order(0), rung=Rung.NOTHING)
            answer = await w.recommend()
            assert answer["items"] == []
            assert answer["next_cursor"] is None

    asyncio.run(scenario())


async def _with_key(w: World, role: str, **body: Any) -> int:
    answer = await w.client.post(
        "/v1/recommend", json=body, headers={"authorization": f"Bearer sk_{role}_x"} if role else {}
    )
    return answer.status_code


def test_client_keys_read_slates_of_visitors_and_of_users_who_were_vouched_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        token = jwt.encode({"sub": "ann", "exp": int(time.time()) + 60}, SECRET, "HS256")
        async with world(tmp_path, keys=KEYS) as w:
            assert await _with_key(w, "", visitor_id="v") == 401
            assert await _with_key(w, "client", visitor_id="v") == 200
            assert await _with_key(w, "client", user_id="ann") == 403
            assert await _with_key(w, "client", user_id="bob", user_token=token) == 403
            assert await _with_key(w, "client", user_id="ann", user_token=token) == 200
            assert await _with_key(w, "server", user_id="bob") == 200

    asyncio.run(scenario())


def test_readiness_lists_dependencies_that_do_not_turn_it_false(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await w.client.get("/ready")
            assert answer.json() == {"ready": True, "dependencies": {"redis": "down"}}

    asyncio.run(scenario())
