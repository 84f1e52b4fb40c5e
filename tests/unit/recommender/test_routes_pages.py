"""Cursors (frozen slates), shelves of a page, rank, similar, popular, and slates read back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.recommender.domain import no_items
from services.recommender.popular import PopularTable
from services.recommender.serving.frozen import FROZEN_TTL_S, SLOTS, Cursor
from shared.errors import ValidationFailed
from tests.unit.recommender.serving_app import EXPLAINED, Row, World, slate_of, state, world
from tests.unit.web.example import KEYS


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


async def pages(w: World, amount: int, **body: Any) -> list[dict[str, Any]]:
    answers = [await w.recommend(**body)]
    for _ in range(amount - 1):
        await w.written_behind()
        answers.append(await w.recommend(**body, cursor=answers[-1]["next_cursor"]))
    return answers


def test_the_next_page_goes_on_with_the_same_slate_without_ranking_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first, second, third = await pages(w, 3, count=5)
            assert len(w.pipeline.queries) == 1
            assert ids(first) + ids(second) + ids(third) == [f"item-{n}" for n in range(59, 44, -1)]
            assert len({answer["recommendation_id"] for answer in (first, second, third)}) == 3
            assert [item["position"] for item in second["items"]] == [0, 1, 2, 3, 4]
            assert second["items"][0]["scores"] == {"click": 0.25, "purchase": 0.25}
            assert second["release"] == "r-1"
            assert set(w.redis.expiry.values()) == {FROZEN_TTL_S}

    asyncio.run(scenario())


def test_the_same_cursor_gives_the_same_page_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            again = [await w.recommend(count=5, cursor=first["next_cursor"]) for _ in range(2)]
            assert ids(again[0]) == ids(again[1])

    asyncio.run(scenario())


def test_a_lost_frozen_slate_becomes_a_fresh_one_without_repeats(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            w.redis.values.clear()
            second = await w.recommend(count=5, cursor=first["next_cursor"])
            assert not set(ids(first)) & set(ids(second))
            assert {"stage": "cursor", "cause": "expired", "fallback": "fresh_slate"} in second["degraded_stages"]
            w.redis.away = True
            third = await w.recommend(count=5, cursor=second["next_cursor"])
            assert len(set(ids(first)) | set(ids(second)) | set(ids(third))) == 15
            assert third["degraded_stages"][0]["cause"] == "redis_unavailable"

    asyncio.run(scenario())


def test_a_frozen_slate_is_kept_for_its_time_and_no_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            w.clock.now_s += FROZEN_TTL_S
            assert (await w.recommend(count=5, cursor=first["next_cursor"]))["degraded_stages"] == []
            w.clock.now_s += 1
            late = await w.recommend(count=5, cursor=first["next_cursor"])
            assert late["degraded_stages"][0]["cause"] == "expired"

    asyncio.run(scenario())


def test_a_user_keeps_a_bounded_number_of_frozen_slates_under_one_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            for _ in range(3 * SLOTS):
                await w.recommend(count=5)
            await w.written_behind()
            assert list(w.redis.values) == ["silkrec:fs1:v:v1"]
            assert len(w.redis.values["silkrec:fs1:v:v1"]) <= SLOTS

    asyncio.run(scenario())


def test_what_was_hidden_since_is_left_out_of_a_frozen_page(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            w.holder.current().catalogue.apply([Row(53, "item-53", is_hidden=True, revision=2)])
            second = await w.recommend(count=5, cursor=first["next_cursor"], exclude_item_ids=["item-52"])
            assert ids(second) == ["item-54", "item-51", "item-50", "item-49", "item-48"]

    asyncio.run(scenario())


def test_a_rest_that_no_longer_fills_a_page_is_ranked_anew_without_repeats(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            # 15 are left in the frozen slate; three of them may still be shown.
            w.holder.current().catalogue.apply([Row(n, f"item-{n}", is_hidden=True, revision=2) for n in range(40, 52)])
            second = await w.recommend(count=5, cursor=first["next_cursor"])
            assert len(w.pipeline.queries) == 2
            assert len(ids(second)) == 5
            assert not set(ids(first)) & set(ids(second))
            assert second["degraded_stages"] == []

    asyncio.run(scenario())


def test_a_redis_that_hangs_costs_a_page_its_frozen_slate_and_not_its_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            w.redis.hangs = True
            second = await w.recommend(count=5, cursor=first["next_cursor"], deadline_ms=200)
            assert second["took_ms"] < 200
            assert len(ids(second)) == 5
            assert not set(ids(first)) & set(ids(second))
            expected = {"stage": "cursor", "cause": "redis_unavailable", "fallback": "fresh_slate"}
            assert second["degraded_stages"] == [expected]

    asyncio.run(scenario())


def test_a_page_that_asks_for_something_else_is_a_fresh_slate(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            second = await w.recommend(count=5, cursor=first["next_cursor"], filter="price > 1")
            assert len(w.pipeline.queries) == 2
            assert not set(ids(first)) & set(ids(second))

    asyncio.run(scenario())


def test_nobody_reads_the_frozen_slate_of_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            first = await w.recommend(count=5)
            await w.written_behind()
            await w.recommend(count=5, cursor=first["next_cursor"], visitor_id="another")
            assert len(w.pipeline.queries) == 2

    asyncio.run(scenario())


def test_pages_end_when_there_is_nothing_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            seen: list[str] = []
            cursor = None
            for _ in range(8):
                answer = await w.recommend(count=9, **({"cursor": cursor} if cursor else {}))
                await w.written_behind()
                seen += ids(answer)
                cursor = answer["next_cursor"]
                if cursor is None:
                    break
            assert cursor is None
            assert len(seen) == len(set(seen)) == 60

    asyncio.run(scenario())


@pytest.mark.parametrize("place", [0, 3, 10, -2])
def test_a_damaged_cursor_is_refused(place: int) -> None:
    text = Cursor("ab" * 8, np.arange(20, dtype=np.int32)).encode()
    assert Cursor.decode(text).shown.tolist() == list(range(20))
    other = "A" if text[place] != "A" else "B"
    damaged = text[:place] + other + (text[place + 1 :] if place != -1 else "")
    with pytest.raises(ValidationFailed):
        Cursor.decode(damaged)


def test_a_cursor_with_impossible_items_reaches_no_array(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            forged = Cursor("ab" * 8, np.array([-5, 3, 2**31 - 1], np.int32)).encode()
            await w.recommend(cursor=forged)
            assert w.pipeline.queries[0].exclude.tolist() == [3]

    asyncio.run(scenario())


def test_shelves_of_a_page_share_no_item_and_keep_their_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            shelf = {"visitor_id": "v1", "count": 5}
            answer = await w.client.post("/v1/recommend:batch", json={"requests": [shelf, shelf, shelf]})
            assert answer.status_code == 200, answer.text
            slates = answer.json()["slates"]
            listed = [ids(slate) for slate in slates]
            assert listed[0] == [f"item-{n}" for n in range(59, 54, -1)]
            assert len({item for shelf_ids in listed for item in shelf_ids}) == 15
            await w.written_behind()
            onward = await w.recommend(count=5, cursor=slates[0]["next_cursor"])
            assert not set(ids(onward)) & {item for shelf_ids in listed for item in shelf_ids}
            assert w.journal.waiting == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"requests": []}, "/requests"),
        ({"requests": [{"visitor_id": "v"}] * 17}, "/requests"),
        ({"requests": [{"visitor_id": "v", "deadline_ms": 50}]}, "/requests/0"),
        ({"requests": [{"visitor_id": "v", "filter": "price <"}]}, "/requests/0/filter"),
        ({"requests": [{"visitor_id": "v"}, {"visitor_id": "v", "return_properties": ["x"]}]}, "/requests/1/return_p"),
    ],
)
def test_a_bad_shelf_is_pointed_at(tmp_path: Path, body: dict[str, Any], pointer: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await w.client.post("/v1/recommend:batch", json=body)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"].startswith(pointer)

    asyncio.run(scenario())


def test_rank_orders_what_it_is_given_and_names_what_it_does_not_know(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await w.recommend("/v1/rank", input_list=["item-4", "what", "item-9", "item-4"])
            assert ids(answer) == ["item-4", "item-9"]
            assert answer["unknown_item_ids"] == ["what"]
            (query,) = w.pipeline.queries
            assert query.input_list is not None
            assert query.input_list.tolist() == [4, 9]
            assert not query.hide_seen
            assert answer["next_cursor"] is None
            problem = await w.refused("/v1/rank", input_list=["item-1"] * 501)
            assert problem["status"] == 422
            assert (await w.refused("/v1/rank", input_list=[]))["status"] == 422

    asyncio.run(scenario())


def test_rank_falls_back_to_popularity_of_the_given_items(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.error = RuntimeError("a bug")
            answer = await w.recommend("/v1/rank", input_list=["item-40", "item-2", "item-9"])
            assert ids(answer) == ["item-2", "item-9", "item-40"]

    asyncio.run(scenario())


async def listed(w: World, path: str, status: int = 200) -> dict[str, Any]:
    answer = await w.client.get(path)
    assert answer.status_code == status, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_popular_is_by_category_and_obeys_the_scene(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            assert ids(await listed(w, "/v1/popular?count=3")) == ["item-0", "item-1", "item-2"]
            assert ids(await listed(w, "/v1/popular?count=2&category=hats")) == ["item-1", "item-3"]
            assert len(ids(await listed(w, "/v1/popular?count=100&scene=cheap"))) == 50
            answer = await listed(w, "/v1/popular?count=1&return_properties=title,price")
            assert answer["items"][0]["properties"] == {"title": "Title 0", "price": 0.0}
            assert (await listed(w, "/v1/popular?scene=no", 404))["code"] == "not_found"
            assert ids(await listed(w, "/v1/popular?category=none")) == []
            await listed(w, "/v1/popular?count=0", 422)
            await listed(w, "/v1/popular?return_properties=colour", 422)

    asyncio.run(scenario())


def test_before_the_first_event_popular_is_what_is_new_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = state()
        nobody_came = replace(serving, popular=PopularTable(no_items(), np.empty(0, np.float32), {}))
        async with world(tmp_path, serving=nobody_came) as w:
            answer = await listed(w, "/v1/popular?count=2")
            assert ids(answer) == ["item-0", "item-1"]
            assert answer["degraded_stages"] == [{"stage": "popular", "cause": "no_events", "fallback": "newest"}]
            assert ids(await listed(w, "/v1/popular?count=2&category=hats")) == ["item-1", "item-3"]
            assert ids(await listed(w, "/v1/popular?category=none")) == []

    asyncio.run(scenario())


def test_similar_without_an_index_is_popular_of_the_same_category_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            answer = await listed(w, "/v1/items/item-5/similar?count=3")
            assert ids(answer) == ["item-1", "item-3", "item-7"]
            assert answer["degraded_stages"] == [{"stage": "similar", "cause": "no_index", "fallback": "popular"}]
            filtered = await listed(w, "/v1/items/item-5/similar?count=3&filter=price%20%3E%2010")
            assert ids(filtered) == ["item-11", "item-13", "item-15"]
            assert (await listed(w, "/v1/items/nothing/similar", 404))["code"] == "not_found"
            assert (await listed(w, "/v1/items/item-5/similar?filter=price", 422))["code"] == "filter_invalid"
            assert (await listed(w, "/v1/items/item-5/similar?filter=price<$x", 422))["code"] == "filter_invalid"

    asyncio.run(scenario())


def test_a_served_slate_reads_back_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            before = await w.recommend(count=3, user_id="ann", filter="price > 1")
            after = await listed(w, f"/v1/recommendations/{before['recommendation_id']}")
            assert after["user_id"] == "ann"
            assert after["items"] == before["items"]
            assert after["request"]["filter"] == "price > 1"
            assert after["release"] == "r-1"

    asyncio.run(scenario())


def test_why_explains_what_was_served_filtered_or_not_chosen(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            w.pipeline.script = lambda _query: slate_of(np.array([1, 2], np.int32), **EXPLAINED)
            explained = (await w.recommend(count=2, explain=True))["recommendation_id"]
            served = await listed(w, f"/v1/recommendations/{explained}/why/item-2")
            assert (served["outcome"], served["position"]) == ("served", 1)
            filtered = await listed(w, f"/v1/recommendations/{explained}/why/item-7")
            assert filtered["outcome"] == "filtered"
            assert filtered["filtered"] == [{"stage": "filter", "rule": "price < 5"}]
            assert (await listed(w, f"/v1/recommendations/{explained}/why/item-30"))["outcome"] == "not_chosen"
            assert (await listed(w, f"/v1/recommendations/{explained}/why/who", 404))["code"] == "not_found"
            plain = (await w.recommend(count=2))["recommendation_id"]
            assert (await listed(w, f"/v1/recommendations/{plain}/why/item-1"))["outcome"] == "served"
            assert (await listed(w, f"/v1/recommendations/{plain}/why/item-7", 409))["code"] == "conflict"

    asyncio.run(scenario())


def test_client_keys_do_not_read_back_slates(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path, keys=KEYS) as w:
            path = "/v1/recommendations/abc"
            assert (await w.client.get(path, headers={"x-api-key": "sk_client_x"})).status_code == 403
            assert (await w.client.get("/v1/popular", headers={"x-api-key": "sk_client_x"})).status_code == 200

    asyncio.run(scenario())


def test_a_slate_that_is_swapped_in_is_served_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as w:
            release = w.holder.current().release
            assert release is not None
            w.holder.swap(release=replace_release(release, "r-2"))
            assert (await w.recommend(validate_only=True))["release"] == "r-2"

    asyncio.run(scenario())


def replace_release(release: Any, name: str) -> Any:
    return release.model_copy(update={"release": name})
