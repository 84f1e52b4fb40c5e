"""A request that nginx tries on two servers is one slate, and all others are slates of their own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.recommender.serving_app import World, world


async def ask(
    w: World, started_s: float, path: str = "/v1/recommend", *, age_s: float = 0.0, rid: str = "r-1", **body: Any
) -> Any:
    """With the longest deadline: it counts from `started_s`, and the test takes a while."""
    headers = {"x-request-id": rid, "x-request-start": f"t={started_s - age_s:.3f}"}
    asked = {"visitor_id": "v1", "deadline_ms": 1000, **body}
    answer = await w.client.post("/v1/recommend", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def started_s() -> float:
    """Taken anew for each test: an arrival of more than a minute ago is not believed."""
    return time.time()


def test_two_servers_give_attempts_at_one_request_one_name_and_one_draw(tmp_path: Path, started_s: float) -> None:
    async def scenario() -> None:
        async with world(tmp_path / "one") as one, world(tmp_path / "two") as two:
            first, second = await ask(one, started_s, count=3), await ask(two, started_s, count=3)
            assert first["recommendation_id"] == second["recommendation_id"]
            assert int(first["recommendation_id"][:12], 16) == int(f"{started_s:.3f}".replace(".", ""))
            assert one.pipeline.queries[-1].seed == two.pipeline.queries[-1].seed

    asyncio.run(scenario())


def test_another_body_request_id_or_arrival_is_another_slate(tmp_path: Path, started_s: float) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answers = [
                await ask(w, started_s, count=3),
                await ask(w, started_s, count=4),
                await ask(w, started_s, count=3, rid="r-2"),
                await ask(w, started_s, count=3, age_s=0.005),
            ]
            assert len({answer["recommendation_id"] for answer in answers}) == 4
            assert len({query.seed for query in w.pipeline.queries}) == 4

    asyncio.run(scenario())


def test_an_arrival_that_is_missing_malformed_or_old_makes_every_call_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            names = set()
            for started in (None, "yesterday", f"t={time.time() - 3600:.3f}"):
                headers = {"x-request-id": "r-1"} | ({} if started is None else {"x-request-start": started})
                for _ in range(2):
                    answer = await w.client.post("/v1/recommend", json={"visitor_id": "v1"}, headers=headers)
                    names.add(answer.json()["recommendation_id"])
            assert len(names) == 6

    asyncio.run(scenario())


def test_the_shelves_of_a_page_have_names_of_their_own(tmp_path: Path, started_s: float) -> None:
    async def scenario() -> None:
        shelf = {"visitor_id": "v1", "count": 2}
        headers = {"x-request-id": "r-1", "x-request-start": f"t={started_s:.3f}"}
        async with world(tmp_path) as w:
            names = []
            for _ in range(2):
                answer = await w.client.post("/v1/recommend:batch", json={"requests": [shelf, shelf]}, headers=headers)
                names.append([slate["recommendation_id"] for slate in answer.json()["slates"]])
        assert names[0] == names[1]
        assert names[0][0] != names[0][1]

    asyncio.run(scenario())
