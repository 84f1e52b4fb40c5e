from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select

from services.features.items.allocate import ensure_items
from services.features.items.wiring import ItemsPart
from services.features.reading.catalogue import ItemRow, read_changed_items
from services.features.routes.items import router
from shared.contracts.manifest import IndexManifest, Release, Space
from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.tables import counters, items, models
from shared.web.app import create_app
from shared.web.health import Readiness
from tests.asgi import running

pytestmark = pytest.mark.integration
FIELDS = {
    "brand": {"type": "string"},
    "tags": {"type": "strings"},
    "weight": {"type": "number"},
    "is_adult": {"type": "boolean"},
    "released": {"type": "timestamp"},
}
WHOLE = {
    "item_type": "shoe",
    "title": "Läufer 🏃",
    "categories": ["shoes", "sale"],
    "is_hidden": False,
    "available_from": "2020-01-31T13:00:00+01:00",
    "available_until": "2990-01-01T00:00:00.000001Z",
    "price": 49.9,
    "currency": "EUR",
    "created_at": "1999-12-31T23:59:59.999999Z",
    "properties": {"brand": "acme", "tags": ["a"], "weight": 1, "is_adult": False, "released": "2020-01-01T00:00:00Z"},
    "embeddings": {"text": [0.1, -1, 2.5e-7]},
}


class NoKeys:
    def has_keys(self) -> bool:
        return False

    def find(self, text: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Shop:
    """The items' part of the service over a real database; `artifacts` is the folder that it reads indexes from."""

    http: httpx.AsyncClient
    database: Database
    artifacts: Path

    async def put(self, item_id: str, **content: Any) -> dict[str, Any]:
        answer = await self.http.put(f"/v1/items/{item_id}", json=content)
        assert answer.status_code in (200, 201), answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def status(self, item_id: str) -> tuple[bool | None, str | None, str | None]:
        told = (await self.http.get(f"/v1/items/{item_id}")).json()["index_status"]
        return told["visible"], told["index_version"], told["reason"]

    def revision(self) -> int:
        with self.database.read() as connection:
            return connection.scalar(select(counters.c.value)) or 0

    def changed_since(self, revision: int) -> list[ItemRow]:
        with self.database.read() as connection:
            return read_changed_items(connection, revision, 1000)

    def index_of(self, item_id: str) -> int:
        with self.database.read() as connection:
            return int(connection.execute(select(items.c.item_index).where(items.c.item_id == item_id)).scalar_one())

    def see(self, *item_ids: str) -> None:
        self.database.transact(lambda connection: ensure_items(connection, item_ids, now_us=1))

    def publish(self, version: str, *item_ids: str, in_folder: bool = True, model_version: str | None = None) -> None:
        """An index of `item_ids` in the artifacts, or only in the registry as if the folder were on another host."""
        rows = np.array(sorted(self.index_of(item_id) for item_id in item_ids), np.int32)
        manifest = IndexManifest(
            version=version,
            created_at=datetime.now(UTC),
            catalogue_version=self.revision(),
            model_version=model_version,
            spaces={"item": Space(file="item.faiss", dim=2, count=len(rows), kind="Flat")},
        )
        if in_folder:
            store = ArtifactStore(self.artifacts)
            with store.staging(IndexManifest, version) as staged:
                np.save(staged / "item_index.npy", rows)
                manifest = store.publish(staged, manifest)
        with self.database.write() as connection:
            registered = {"version": version, "kind": "index", "created_at_us": 0}
            connection.execute(insert(models).values(**registered, manifest=manifest.model_dump(mode="json")))

    def promote(self, index_version: str | None) -> None:
        release = Release(release=f"r-{index_version}", model_version=None, index_version=index_version)
        with self.database.write() as connection:
            deployments.promote(connection, release, settings=None, actor="test")


@contextlib.asynccontextmanager
async def open_shop(database: Database, folder: Path) -> AsyncIterator[Shop]:
    settings = Settings.model_validate({"home": folder, "data": {"item_fields": FIELDS}})
    part = ItemsPart.build(settings, database=database)
    state: dict[str, Any] = {"settings": settings, "database": database, "keys": NoKeys(), **part.state()}

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield state

    app = create_app(
        title="items",
        lifespan=lifespan,
        settings=settings,
        service="features",
        metrics=Metrics("features"),
        max_body_bytes=32 * 1024 * 1024,
        ready=lambda: Readiness(True, {}),
    )
    app.include_router(router)
    async with running(app) as http:
        yield Shop(http, database, settings.artifacts_dir())
        await part.close()


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Callable[[Callable[[Shop], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[Shop], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            async with open_shop(database, tmp_path) as parts:
                await test(parts)

        asyncio.run(body())

    return run


Run = Callable[[Callable[[Shop], Coroutine[Any, Any, None]]], None]


def test_an_item_comes_back_as_it_was_put(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        made = await parts.http.put("/v1/items/a", json={"item_id": "a", **WHOLE})
        assert made.status_code == 201
        answer = (await parts.http.get("/v1/items/a")).json()
        assert answer == made.json()
        assert {name: answer[name] for name in WHOLE} == {
            **WHOLE,
            "available_from": "2020-01-31T12:00:00.000000Z",
            "available_until": "2990-01-01T00:00:00.000001Z",
        }
        assert answer["known"] is True

    shop(test)


def test_a_put_replaces_the_whole_item_but_not_its_age(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a", **WHOLE)
        again = await parts.http.put("/v1/items/a", json={"title": "b"})
        assert again.status_code == 200
        answer = again.json()
        assert (answer["title"], answer["price"], answer["categories"], answer["properties"]) == ("b", None, [], {})
        assert (answer["embeddings"], answer["created_at"]) == ({}, WHOLE["created_at"])

    shop(test)


def test_each_change_raises_the_catalogue_by_one_and_the_same_again_changes_nothing(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a", **WHOLE)
        assert parts.revision() == 1
        first = await parts.put("b", title="b")
        assert [(row.item_id, row.revision) for row in parts.changed_since(1)] == [("b", 2)]
        assert await parts.put("b", title="b") == first
        assert parts.revision() == 2
        await parts.http.patch("/v1/items/a", json={"price": 1})
        await parts.http.patch("/v1/items/a", json={"price": 1})
        assert [(row.item_id, row.price) for row in parts.changed_since(2)] == [("a", 1.0)]
        rows = [{"item_id": "b", "title": "b"}, {"item_id": "c"}]
        await parts.http.post("/v1/items", json={"items": rows})
        assert [(row.item_id, row.revision) for row in parts.changed_since(3)] == [("c", 4)]
        await parts.http.delete("/v1/items/a")
        await parts.http.delete("/v1/items/a")
        assert parts.revision() == 5
        assert [(row.item_id, row.revision, row.deleted) for row in parts.changed_since(4)] == [("a", 5, True)]

    shop(test)


def test_a_patch_changes_what_it_names_and_a_null_takes_away(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        before = await parts.put("a", **WHOLE)
        patch = {
            "price": None,
            "is_hidden": None,
            "categories": None,
            "properties": {"brand": None, "weight": 2.5, "gone": None},
            "embeddings": {"text": None, "image": [1.0]},
        }
        headers = {"content-type": "application/merge-patch+json"}
        answer = await parts.http.patch("/v1/items/a", content=orjson.dumps(patch), headers=headers)
        after = answer.json()
        assert answer.status_code == 200, after
        assert (after["price"], after["is_hidden"], after["categories"]) == (None, False, [])
        assert after["properties"] == {
            "tags": ["a"],
            "weight": 2.5,
            "is_adult": False,
            "released": "2020-01-01T00:00:00Z",
        }
        assert after["embeddings"] == {"image": [1.0]}
        kept = ("title", "item_type", "currency", "available_from", "available_until", "created_at")
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}

    shop(test)


def test_a_patch_that_would_make_the_item_unsound_changes_nothing(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a", available_from="2026-01-01T00:00:00Z")
        answer = await parts.http.patch("/v1/items/a", json={"available_until": "2025-01-01T00:00:00Z"})
        assert answer.status_code == 422
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/available_until"]
        assert (await parts.http.patch("/v1/items/a", json={"created_at": None})).status_code == 422
        assert parts.revision() == 1
        assert (await parts.http.patch("/v1/items/nobody", json={})).status_code == 404

    shop(test)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"properties": {"brandt": "x"}}, "/properties/brandt"),
        ({"properties": {"weight": "1"}}, "/properties/weight"),
        ({"properties": {"weight": True}}, "/properties/weight"),
        ({"properties": {"tags": ["a", 1]}}, "/properties/tags"),
        ({"properties": {"released": "yesterday"}}, "/properties/released"),
        ({"properties": {"brand": None}}, "/properties/brand"),
        ({"price": -0.01}, "/price"),
        ({"price": "1"}, "/price"),
        ({"currency": "euro"}, "/currency"),
        ({"currency": "eur"}, "/currency"),
        ({"available_from": "2026-01-01T00:00:00"}, "/available_from"),
        ({"available_from": 1767225600}, "/available_from"),
        ({"available_from": "2026-01-01T00:00:00Z", "available_until": "2026-01-01T00:00:00Z"}, "/available_until"),
        ({"title": "t" * 1025}, "/title"),
        ({"categories": ["a"] * 65}, "/categories"),
        ({"embeddings": {"text": []}}, "/embeddings/text"),
        ({"embeddings": {"text": [0.0] * 4097}}, "/embeddings/text"),
        ({"embeddings": {"text": [1e39]}}, "/embeddings/text/0"),
        ({"embeddings": {f"e{n}": [1.0] for n in range(9)}}, "/embeddings"),
        ({"titel": "x"}, "/titel"),
        ({"item_id": "b"}, "/item_id"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_with_a_pointer(shop: Run, body: dict[str, Any], pointer: str) -> None:
    async def test(parts: Shop) -> None:
        answer = await parts.http.put("/v1/items/a", json=body)
        assert answer.status_code == 422
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
        bulk = (await parts.http.post("/v1/items", json={"items": [{"item_id": "a", **body}, {"item_id": "b"}]})).json()
        if pointer != "/item_id":
            assert (bulk["accepted"], [row["pointer"] for row in bulk["rejected"]]) == (1, [pointer])
        assert (await parts.http.get("/v1/items/a")).status_code == 404

    shop(test)


def test_an_undeclared_property_is_told_where_to_declare_it(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        answer = (await parts.http.put("/v1/items/a", json={"properties": {"zzz": 1}})).json()
        assert "item_fields in silkrec.yaml" in answer["detail"]
        near = (await parts.http.put("/v1/items/a", json={"properties": {"brandt": 1}})).json()
        assert "did you mean brand?" in near["detail"]

    shop(test)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(shop: Run, number: str) -> None:
    async def test(parts: Shop) -> None:
        headers = {"content-type": "application/json"}
        for body in (f'{{"price": {number}}}', f'{{"embeddings": {{"a": [{number}]}}}}'):
            answer = await parts.http.put("/v1/items/a", content=body.encode(), headers=headers)
            assert answer.status_code in (400, 422)

    shop(test)


def test_one_bad_item_does_not_refuse_its_batch_and_the_last_of_two_counts(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        rows: list[dict[str, Any]] = [
            {"item_id": "a", "title": "first"},
            {"item_id": "b", "properties": {"brandt": "x"}},
            {"title": "nameless"},
            {"item_id": "no/no"},
            {"item_id": "a", "title": "second"},
        ]
        answer = (await parts.http.post("/v1/items", json={"items": rows})).json()
        assert answer["accepted"] == 2
        assert [(row["index"], row["item_id"]) for row in answer["rejected"]] == [(1, "b"), (2, None), (3, "no/no")]
        assert (await parts.http.get("/v1/items/a")).json()["title"] == "second"
        assert parts.revision() == 1
        too_many = await parts.http.post("/v1/items", json={"items": [{"item_id": f"i{n}"} for n in range(501)]})
        assert too_many.status_code == 422
        assert (await parts.http.post("/v1/items", json={"items": []})).status_code == 422

    shop(test)


def test_a_deleted_item_is_gone_until_it_is_put_again_under_its_old_number(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a", **WHOLE)
        index = parts.index_of("a")
        deleted = await parts.http.delete("/v1/items/a")
        assert (deleted.status_code, deleted.json()["index_status"]["reason"]) == (200, "deleted")
        assert (await parts.http.delete("/v1/items/a")).json() == deleted.json()
        assert (await parts.http.get("/v1/items/a")).status_code == 404
        assert (await parts.http.patch("/v1/items/a", json={})).status_code == 404
        assert (await parts.http.get("/v1/items")).json()["items"] == []
        await parts.put("b")
        parts.see("a")
        assert (await parts.http.get("/v1/items/a")).status_code == 404
        revived = await parts.http.put("/v1/items/a", json=WHOLE)
        assert revived.status_code == 201
        assert parts.index_of("a") == index
        assert (await parts.http.delete("/v1/items/nobody")).status_code == 404

    shop(test)


def test_an_item_seen_in_events_alone_is_there_and_gets_content_by_put_or_patch(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        parts.see("a", "b")
        seen = (await parts.http.get("/v1/items/a")).json()
        assert (seen["known"], seen["title"], seen["created_at"]) == (False, None, "1970-01-01T00:00:00.000001Z")
        put = await parts.http.put("/v1/items/a", json={})
        assert (put.status_code, put.json()["known"], parts.index_of("a")) == (201, True, 1)
        patched = await parts.http.patch("/v1/items/b", json={"title": "b"})
        assert (patched.json()["known"], parts.index_of("b")) == (True, 2)

    shop(test)


def test_a_list_shows_every_item_once_although_others_come_and_go(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        names = [f"n{place:02d}" for place in range(25)]
        await parts.http.post("/v1/items", json={"items": [{"item_id": name} for name in reversed(names)]})
        seen: list[str] = []
        cursor: str | None = None
        while True:
            query: dict[str, Any] = {"limit": 10} | ({"cursor": cursor} if cursor else {})
            page = (await parts.http.get("/v1/items", params=query)).json()
            seen += [row["item_id"] for row in page["items"]]
            await parts.put("a-new-first")
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == names
        assert (await parts.http.get("/v1/items", params={"cursor": "broken"})).status_code == 422

    shop(test)


def test_concurrent_bulk_writers_of_overlapping_items_lose_nothing(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        async def write(writer: int) -> None:
            rows = [{"item_id": f"i{(writer * 7 + n) % 60}", "title": f"w{writer}"} for n in range(30)]
            assert (await parts.http.post("/v1/items", json={"items": rows})).json()["accepted"] == 30

        await asyncio.gather(*(write(writer) for writer in range(8)))
        rows = parts.changed_since(0)
        assert sorted(row.item_index for row in rows) == list(range(1, len(rows) + 1))
        assert len({row.item_id for row in rows}) == len(rows) == 60

    shop(test)


def test_index_status_follows_the_active_index(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a", title="a")
        assert await parts.status("a") == (False, None, "no_release")
        parts.promote(None)
        assert await parts.status("a") == (False, None, "no_index")
        await parts.put("left-out")
        parts.publish("x-1", "a")
        parts.promote("x-1")
        await parts.put("b", title="b")
        parts.see("stranger")
        assert await parts.status("a") == (True, "x-1", None)
        assert await parts.status("b") == (False, None, "newer_than_index")
        assert await parts.status("left-out") == (False, None, "left_out_of_index")
        assert await parts.status("stranger") == (False, None, "content_unknown")
        await parts.put("a", title="changed after the index was made")
        assert await parts.status("a") == (True, "x-1", None)
        parts.publish("x-2", "a", "b", "stranger")
        parts.promote("x-2")
        assert await parts.status("a") == (True, "x-1", None)
        assert await parts.status("b") == (True, "x-2", None)
        assert await parts.status("stranger") == (True, "x-2", None)

    shop(test)


def test_a_gap_between_indexes_starts_the_visibility_anew(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a")
        await parts.put("b")
        for version, held in (("x-1", ("a", "b")), ("x-2", ("b",)), ("x-3", ("a", "b"))):
            parts.publish(version, *held)
            parts.promote(version)
        assert await parts.status("a") == (True, "x-3", None)
        assert await parts.status("b") == (True, "x-1", None)
        parts.promote(None)
        parts.promote("x-3")
        assert await parts.status("b") == (True, "x-3", None)

    shop(test)


def test_what_keeps_an_item_out_of_every_slate_is_told_whatever_the_index_holds(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("hidden", is_hidden=True)
        await parts.put("later", available_from="2990-01-01T00:00:00Z")
        await parts.put("over", available_until="2020-01-01T00:00:00Z")
        parts.publish("x-1", "hidden", "later", "over")
        parts.promote("x-1")
        assert await parts.status("hidden") == (False, None, "hidden")
        assert await parts.status("later") == (False, None, "not_available_yet")
        assert await parts.status("over") == (False, None, "no_longer_available")
        page = (await parts.http.get("/v1/items")).json()["items"]
        assert [row["index_status"]["reason"] for row in page] == ["hidden", "not_available_yet", "no_longer_available"]

    shop(test)


def test_without_the_index_folder_only_what_the_manifest_proves_is_claimed(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a")
        parts.publish("behaviour", "a", in_folder=False)
        parts.promote("behaviour")
        assert await parts.status("a") == (None, None, "index_unreadable")
        parts.publish("from-model", "a", in_folder=False, model_version="m-1")
        parts.promote("from-model")
        await parts.put("b")
        assert await parts.status("a") == (True, "from-model", None)
        assert await parts.status("b") == (None, None, "index_unreadable")

    shop(test)


def test_a_damaged_index_folder_is_not_believed(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        await parts.put("a")
        parts.publish("x-1", "a")
        parts.promote("x-1")
        path = parts.artifacts / "indexes" / "x-1" / "item_index.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        assert await parts.status("a") == (None, None, "index_unreadable")

    shop(test)


def test_the_fresh_source_is_named_for_new_items_only(shop: Run) -> None:
    async def test(parts: Shop) -> None:
        now = datetime.fromtimestamp(time.time(), UTC).isoformat()
        new = await parts.put("new", created_at=now)
        old = await parts.put("old", created_at="2020-01-01T00:00:00Z")
        assert "fresh source" in new["index_status"]["detail"]
        assert "fresh source" not in old["index_status"]["detail"]

    shop(test)
