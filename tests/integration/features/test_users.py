from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from services.features.online.keys import history_key, profile_key
from services.features.users.deletions import record, unfinished
from services.features.users.profile_cache import Profile, ProfileCache, decode
from services.features.users.refresh import refresh_profiles
from shared.storage.database import Database
from shared.storage.tables import (
    batch_slates,
    deletions,
    events,
    experiment_excluded_units,
    experiment_slates,
    experiment_unit_days,
    exposures,
    feedback,
    models,
    recommendations,
    user_state,
    users,
)
from tests.integration.features.helpers import Suite, add_events, add_exposure, add_feedback, add_item, add_slate, suite

pytestmark = pytest.mark.integration
Test = Callable[[Suite], Coroutine[Any, Any, None]]


def run(database: Database, redis_url: str, test: Test) -> None:
    async def body() -> None:
        async with suite(database, redis_url) as parts:
            await test(parts)

    asyncio.run(body())


async def held_profile(parts: Suite, user_key: str) -> Profile:
    value = await parts.redis.get(profile_key(user_key))
    assert isinstance(value, bytes)
    profile = decode(value)
    assert profile is not None
    return profile


def count(database: Database, table: Any, user_key: str) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table).where(table.c.user_key == user_key)) or 0)


def test_a_profile_is_put_read_patched_and_seen_by_the_reader(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        profile = {"properties": {"country": "at", "age": 41}, "segments": ["gold"]}
        made = await parts.http.put("/v1/users/ann", json=profile)
        assert (made.status_code, made.json()["properties"]) == (201, {"country": "at", "age": 41})
        again = await parts.http.put("/v1/users/ann", json=profile)
        assert again.status_code == 200
        assert again.json()["created_at"] == made.json()["created_at"]
        assert again.json()["updated_at"] > made.json()["updated_at"]
        patched = await parts.http.patch("/v1/users/ann", json={"properties": {"age": None, "country": "de"}})
        assert patched.json()["properties"] == {"country": "de"}
        assert patched.json()["segments"] == ["gold"]
        assert (await parts.http.get("/v1/users/ann")).json() == patched.json()
        view = await parts.reader.user("u:ann", timeout_s=5)
        assert (view.properties, view.segments) == ({"country": "de"}, ("gold",))

    run(database, redis_url, test)


def test_a_written_profile_leaves_nobody_dirty_and_its_key_has_a_ttl(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        await parts.http.put("/v1/users/ann", json={"properties": {"country": "at"}})
        assert await parts.redis.ttl(profile_key("u:ann")) > 0
        with database.read() as connection:
            assert connection.execute(select(user_state.c.dirty_since_us)).all() == [(None,)]

    run(database, redis_url, test)


def test_without_redis_a_profile_is_stored_and_the_user_stays_dirty(database: Database) -> None:
    async def test(parts: Suite) -> None:
        answer = await parts.http.put("/v1/users/ann", json={"properties": {"country": "at"}})
        assert answer.status_code == 201
        assert (await parts.http.get("/v1/users/ann")).json()["properties"] == {"country": "at"}
        with database.read() as connection:
            assert connection.scalar(select(user_state.c.dirty_since_us)) is not None

    run(database, "unix:///nonexistent/redis.sock", test)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"properties": {"contry": "at"}}, "/properties/contry"),
        ({"properties": {"age": "old"}}, "/properties/age"),
        ({"segments": ["no/no"]}, "/segments/0"),
        ({"segments": [1]}, "/segments/0"),
        ({"propertys": {}}, "/propertys"),
        ({"user_id": "bob"}, "/user_id"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_with_a_pointer(
    database: Database, redis_url: str, body: dict[str, Any], pointer: str
) -> None:
    async def test(parts: Suite) -> None:
        answer = await parts.http.put("/v1/users/ann", json=body)
        assert answer.status_code == 422
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
        assert (await parts.http.get("/v1/users/ann")).status_code == 404

    run(database, redis_url, test)


def test_nan_and_bad_ids_are_refused(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        body = b'{"properties": {"age": NaN}}'
        answer = await parts.http.put("/v1/users/ann", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert (await parts.http.put("/v1/users/a%25b", json={})).status_code == 422
        assert (await parts.http.put("/v1/users/%20a", json={})).status_code == 422

    run(database, redis_url, test)


def test_one_bad_row_does_not_refuse_its_batch(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        rows = [
            {"user_id": "ann", "properties": {"country": "at"}},
            {"user_id": "bob", "properties": {"contry": "at"}},
            {"properties": {}},
            {"user_id": "a/b"},
            {"user_id": "ann", "properties": {"country": "de"}},
        ]
        answer = (await parts.http.post("/v1/users", json={"users": rows})).json()
        assert answer["accepted"] == 2
        assert [(row["index"], row["user_id"]) for row in answer["rejected"]] == [(1, "bob"), (2, None), (3, "a/b")]
        assert "country" in answer["rejected"][0]["message"]
        assert (await parts.http.get("/v1/users/ann")).json()["properties"] == {"country": "de"}
        too_many = await parts.http.post("/v1/users", json={"users": [{"user_id": f"u{n}"} for n in range(501)]})
        assert too_many.status_code == 422

    run(database, redis_url, test)


def test_a_list_shows_every_user_once_although_others_come_and_go(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        names = [f"n{place:02d}" for place in range(25)]
        await parts.http.post("/v1/users", json={"users": [{"user_id": name} for name in names]})
        seen: list[str] = []
        cursor: str | None = None
        while True:
            query: dict[str, Any] = {"limit": 10} | ({"cursor": cursor} if cursor else {})
            page = (await parts.http.get("/v1/users", params=query)).json()
            seen += [row["user_id"] for row in page["items"]]
            await parts.http.put("/v1/users/a-new-first", json={})
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == names
        damaged = await parts.http.get("/v1/users", params={"cursor": "AAAA"})
        assert (damaged.status_code, damaged.json()["errors"][0]["pointer"]) == (422, "/cursor")

    run(database, redis_url, test)


def _state(database: Database) -> list[Any]:
    with database.read() as connection:
        owners = connection.execute(select(events.c.event_id, events.c.user_key).order_by(events.c.event_id)).all()
        ratings = connection.execute(select(feedback).order_by(feedback.c.user_key, feedback.c.item_index)).all()
        states = connection.execute(select(user_state).order_by(user_state.c.user_key)).all()
        slates = connection.execute(select(recommendations.c.recommendation_id, recommendations.c.user_key)).all()
    return [owners, ratings, states, slates]


def test_merging_twice_is_the_same_as_merging_once(database: Database, redis_url: str) -> None:
    add_events(database, "v:web", 1, 2, start_s=1000)
    add_events(database, "u:ann", 3, start_s=1001)
    add_slate(database, "v:web", "rec1", 1, 2)
    add_feedback(database, "v:web", 1, value=5, at_us=20)
    add_feedback(database, "u:ann", 1, value=3, at_us=10)
    add_feedback(database, "v:web", 2, value=1, at_us=10)
    add_feedback(database, "u:ann", 2, value=4, at_us=20)

    async def test(parts: Suite) -> None:
        await parts.reader.user("v:web", timeout_s=5)
        body = {"visitor_id": "web", "user_id": "ann"}
        first = (await parts.http.post("/v1/users:merge", json=body)).json()
        assert first["changed"] is True
        assert first["moved"] == {"events": 2, "feedback": 1, "recommendations": 1}
        once = _state(database)
        second = (await parts.http.post("/v1/users:merge", json=body)).json()
        assert second["changed"] is False
        assert _state(database) == once
        ratings = {(row.user_key, row.item_index): row.value for row in once[1]}
        assert ratings == {("u:ann", 1): 5, ("u:ann", 2): 4}
        marks = {row.user_key: (row.revision, row.dirty_since_us, row.merged_into) for row in once[2]}
        assert marks == {"u:ann": (2, None, None), "v:web": (2, None, "u:ann")}

    run(database, redis_url, test)


def test_after_a_merge_redis_holds_both_histories_anew(database: Database, redis_url: str) -> None:
    add_events(database, "v:web", 1, 2, start_s=1000)
    add_events(database, "u:ann", 3, start_s=1001)

    async def test(parts: Suite) -> None:
        await parts.http.post("/v1/users:merge", json={"visitor_id": "web", "user_id": "ann"})
        user = await parts.reader.user("u:ann", timeout_s=5)
        assert user.history.source == "redis"
        assert sorted(user.history.rows["item"].tolist()) == [1, 2, 3]
        assert user.history.rows["time"].tolist() == [1000, 1001, 1001]
        visitor = await parts.reader.user("v:web", timeout_s=5)
        assert len(visitor.history.rows) == 0
        assert await parts.redis.ttl(history_key("u:ann")) > 0

    run(database, redis_url, test)


def test_a_visitor_belongs_to_one_user_only(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        await parts.http.post("/v1/users:merge", json={"visitor_id": "web", "user_id": "ann"})
        answer = await parts.http.post("/v1/users:merge", json={"visitor_id": "web", "user_id": "bob"})
        assert answer.status_code == 409

    run(database, redis_url, test)


def test_an_export_holds_everything_and_says_that_it_is_whole(database: Database, redis_url: str) -> None:
    for item_index in range(1, 4):
        add_item(database, item_index)
    add_events(database, "u:ann", *([1, 2, 3] * 400))
    add_events(database, "u:bob", 1)
    add_feedback(database, "u:ann", 2, value=5, at_us=1)
    add_slate(database, "u:ann", "rec1", 3, 1)

    async def test(parts: Suite) -> None:
        await parts.http.put("/v1/users/ann", json={"properties": {"country": "at"}})
        await parts.http.post("/v1/users:merge", json={"visitor_id": "web", "user_id": "ann"})
        answer = await parts.http.get("/v1/users/ann/export")
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = [orjson.loads(line) for line in answer.content.splitlines()]
        counts = {"profile": 1, "event": 1200, "feedback": 1, "recommendation": 1}
        assert lines[-1] == {"kind": "end", "counts": counts}
        assert len({line["event_id"] for line in lines if line["kind"] == "event"}) == 1200
        assert {line["user_id"] for line in lines[:-1]} == {"ann"}
        slate = next(line for line in lines if line["kind"] == "recommendation")
        assert slate["item_ids"] == ["i3", "i1"]
        assert (await parts.http.get("/v1/users/nobody/export")).status_code == 404

    run(database, redis_url, test)


async def _deleted(parts: Suite, user_id: str) -> dict[str, Any]:
    accepted = await parts.http.delete(f"/v1/users/{user_id}")
    assert accepted.status_code == 202
    assert await parts.part.worker.work_once()
    answer = await parts.http.get(f"/v1/deletions/{accepted.json()['deletion_id']}")
    receipt: dict[str, Any] = answer.json()
    return receipt


def test_a_deletion_empties_every_store_and_gives_a_receipt_for_each(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1, 2, 3)
    add_events(database, "u:bob", 1)
    add_feedback(database, "u:ann", 2, value=5, at_us=1)
    add_slate(database, "u:ann", "rec1", 3, 1)
    with database.write() as connection:
        connection.execute(models.insert().values(version="m1", kind="model", created_at_us=1, manifest={}))
        for owner in ("u:ann", "u:bob"):
            made = {"scene": "home", "job_id": "job_1", "chunk": 1, "release": "r-1", "made_at_us": 1, "made_day": 0}
            connection.execute(batch_slates.insert().values(user_key=owner, slate=b"packed", **made))
    add_exposure(database, "u:ann", "rec1", "rec2")
    add_exposure(database, "u:bob", "rec3")

    async def test(parts: Suite) -> None:
        await parts.redis.set("silkrec:sb1:u:ann", b'{"mmr__0": "diverse"}')
        await parts.http.put("/v1/users/ann", json={"properties": {"country": "at"}})
        await parts.reader.user("u:ann", timeout_s=5)
        receipt = await _deleted(parts, "ann")
        assert receipt["state"] == "done"
        states = {store: entry["state"] for store, entry in receipt["receipts"].items()}
        assert states == {
            "mysql": "done",
            "redis": "done",
            "latents": "not_kept",
            "batch_slates": "done",
            "logs": "not_kept",
            "models": "named",
        }
        removed = {"users": 1, "events": 3, "feedback": 1, "recommendations": 1}
        removed |= {"batch_slates": 1, "exposures": 1, "experiment_slates": 2, "experiment_unit_days": 2}
        assert receipt["receipts"]["mysql"]["removed"] == removed
        assert receipt["receipts"]["models"]["models"] == ["m1"]
        for table in (users, events, feedback, recommendations):
            assert count(database, table, "u:ann") == 0
        assert count(database, events, "u:bob") == 1
        view = await parts.reader.user("u:ann", timeout_s=5)
        assert (len(view.history.rows), dict(view.properties)) == (0, {})
        with database.read() as connection:
            kept = (exposures, experiment_slates, experiment_unit_days, experiment_excluded_units)
            left = [list(connection.scalars(select(table.c.unit))) for table in kept]
        assert left == [["u:bob"]] * 4
        assert await parts.redis.get("silkrec:sb1:u:ann") is None
        for key in (history_key("u:ann"), profile_key("u:ann")):
            assert await parts.redis.ttl(key) <= 60

    run(database, redis_url, test)


def test_a_deletion_takes_the_merged_visitors_with_it(database: Database, redis_url: str) -> None:
    add_events(database, "v:web", 1, 2)

    async def test(parts: Suite) -> None:
        await parts.http.post("/v1/users:merge", json={"visitor_id": "web", "user_id": "ann"})
        add_events(database, "v:web", 3, start_s=2000)
        await _deleted(parts, "ann")
        assert count(database, events, "u:ann") + count(database, events, "v:web") == 0
        with database.read() as connection:
            gone = connection.scalars(select(user_state.c.deleted_at_us)).all()
        assert len(gone) == 2
        assert None not in gone

    run(database, redis_url, test)


def test_a_deletion_goes_on_where_a_crash_stopped_it(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1, 2, 3)

    async def test(parts: Suite) -> None:
        deletion_id = (await parts.http.delete("/v1/users/ann")).json()["deletion_id"]
        with database.write() as connection:
            record(connection, deletion_id, "latents", {"state": "done", "note": "before the crash"}, 1)
        refused = await parts.http.put("/v1/users/ann", json={})
        assert refused.status_code == 409
        assert await parts.part.worker.work_once()
        answer = (await parts.http.get(f"/v1/deletions/{deletion_id}")).json()
        assert answer["state"] == "done"
        assert answer["receipts"]["latents"]["note"] == "before the crash"
        with database.read() as connection:
            assert unfinished(connection, 10) == []
        assert (await parts.http.put("/v1/users/ann", json={})).status_code == 201
        with database.read() as connection:
            assert connection.scalar(select(user_state.c.deleted_at_us)) is None

    run(database, redis_url, test)


def test_without_redis_a_deletion_stays_open_and_says_what_is_done(database: Database) -> None:
    add_events(database, "u:ann", 1)

    async def test(parts: Suite) -> None:
        deletion_id = (await parts.http.delete("/v1/users/ann")).json()["deletion_id"]
        assert not await parts.part.worker.work_once()
        answer = (await parts.http.get(f"/v1/deletions/{deletion_id}")).json()
        assert answer["state"] == "pending"
        assert answer["receipts"]["mysql"]["state"] == "done"
        assert answer["receipts"]["redis"] == {"state": "pending"}
        assert (await parts.http.delete("/v1/users/ann")).json()["deletion_id"] == deletion_id

    run(database, "unix:///nonexistent/redis.sock", test)


def test_the_worker_runs_when_it_is_woken(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1)

    async def test(parts: Suite) -> None:
        worker = asyncio.create_task(parts.part.worker.run())
        try:
            deletion_id = (await parts.http.delete("/v1/users/ann")).json()["deletion_id"]
            async with asyncio.timeout(20):
                while (await parts.http.get(f"/v1/deletions/{deletion_id}")).json()["state"] != "done":
                    continue
        finally:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker

    run(database, redis_url, test)


def test_an_unknown_user_or_deletion_is_not_found(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        assert (await parts.http.get("/v1/users/nobody")).status_code == 404
        assert (await parts.http.patch("/v1/users/nobody", json={})).status_code == 404
        assert (await parts.http.delete("/v1/users/nobody")).status_code == 404
        assert (await parts.http.get("/v1/deletions/none")).status_code == 404

    run(database, redis_url, test)
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(deletions)) == 0


def test_a_profile_put_during_an_outage_reaches_redis_with_the_sweep(database: Database, redis_url: str) -> None:
    async def while_away(parts: Suite) -> None:
        await parts.http.put("/v1/users/ann", json={"properties": {"country": "de"}})

    async def test(parts: Suite) -> None:
        await parts.http.put("/v1/users/ann", json={"properties": {"country": "at"}})
        async with suite(database, "unix:///nonexistent/redis.sock") as cut_off:
            await while_away(cut_off)
        await refresh_profiles(database, parts.redis, ["u:ann", "u:nobody"])
        assert (await held_profile(parts, "u:ann")).properties == {"country": "de"}
        assert await parts.redis.ttl(profile_key("u:ann")) > 0

    run(database, redis_url, test)


def test_an_older_profile_never_replaces_a_newer_one_in_redis(database: Database, redis_url: str) -> None:
    async def test(parts: Suite) -> None:
        cache = ProfileCache(parts.redis)
        await cache.store("u:ann", Profile({"country": "new"}, (), 2_000_000_000_000_001))
        await cache.store("u:ann", Profile({"country": "old"}, (), 2_000_000_000_000_000))
        assert (await held_profile(parts, "u:ann")).properties == {"country": "new"}

    run(database, redis_url, test)
