from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from services.recommender.jobs.desk import JobDesk
from services.recommender.jobs.store.jobs import FORMAT
from services.recommender.routes import jobs
from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import jobs as rows
from shared.web.app import create_app
from shared.web.health import Readiness
from tests.asgi import running
from tests.unit.web.example import KEYS, NO_KEYS, FakeKeys

BODY = {"type": "slate", "params": {"user_ids": ["ann", "ben"], "count": 5}}


@contextlib.asynccontextmanager
async def serving(folder: Path, keys: FakeKeys = NO_KEYS) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(home=folder)
    database = Database(settings.database_url(), settings.database)
    migrate.upgrade(database)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[Mapping[str, Any]]:
        yield {"settings": settings, "keys": keys, "jobs": JobDesk(database, settings)}
        database.close()

    app = create_app(
        title="jobs",
        lifespan=lifespan,
        settings=settings,
        service="example",
        metrics=Metrics("example"),
        max_body_bytes=256 * 1024,
        ready=lambda: Readiness(True, {}),
    )
    app.include_router(jobs.router)
    async with running(app) as client:
        yield client


def test_a_job_is_accepted_looked_at_listed_and_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as client:
            accepted = await client.post("/v1/jobs", json=BODY)
            assert accepted.status_code == 202
            job = accepted.json()
            assert job["state"] == "planning"
            assert job["progress"] == {"done": 0, "total": 0, "failed": 0}
            assert job["output"] == {"to": ["database", "redis"]}
            assert job["params"] == {"user_ids": "2 given", "count": 5}
            assert accepted.headers["location"] == f"/v1/jobs/{job['job_id']}"
            shown = (await client.get(f"/v1/jobs/{job['job_id']}")).json()
            assert (shown["parked"], shown["failures"], shown["eta_s"]) == ([], [], None)
            ended = await client.post(f"/v1/jobs/{job['job_id']}:cancel")
            assert ended.json()["state"] == "cancelled"
            again = await client.post(f"/v1/jobs/{job['job_id']}:cancel")
            assert again.status_code == 200

    asyncio.run(scenario())


def test_the_same_key_answers_the_same_job_and_another_body_is_a_conflict(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as client:
            headers = {"idempotency-key": "nightly-1"}
            first = (await client.post("/v1/jobs", json=BODY, headers=headers)).json()
            again = await client.post("/v1/jobs", json=BODY, headers=headers)
            assert (again.status_code, again.json()["job_id"]) == (202, first["job_id"])
            other = await client.post("/v1/jobs", json={**BODY, "type": "prefill"}, headers=headers)
            assert (other.status_code, other.json()["code"]) == (409, "conflict")

    asyncio.run(scenario())


def test_a_job_of_a_type_that_only_a_newer_release_knows_is_listed_with_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as client:
            newer = (await client.post("/v1/jobs", json=BODY)).json()["job_id"]
            settings = Settings(home=tmp_path)
            database = Database(settings.database_url(), settings.database)
            with database.write() as connection:
                connection.execute(update(rows).values(format=FORMAT + 1, kind="distil", spec={"format": FORMAT + 1}))
            database.close()
            own = (await client.post("/v1/jobs", json=BODY)).json()["job_id"]
            listed = (await client.get("/v1/jobs")).json()["items"]
            assert [(one["job_id"], one["type"]) for one in listed] == [(own, "slate"), (newer, "distil")]
            assert (await client.get(f"/v1/jobs/{newer}")).json()["type"] == "distil"

    asyncio.run(scenario())


def test_lists_go_on_behind_their_cursor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as client:
            made = [(await client.post("/v1/jobs", json=BODY)).json()["job_id"] for _ in range(5)]
            found: list[str] = []
            cursor: str | None = None
            while True:
                query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
                page = (await client.get("/v1/jobs", params=query)).json()
                found += [one["job_id"] for one in page["items"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            assert found == made[::-1]
            assert (await client.get("/v1/jobs", params={"state": "failed"})).json()["items"] == []
            damaged = await client.get("/v1/jobs", params={"cursor": "x"})
            assert damaged.status_code == 422

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"type": "nothing"}, "/type"),
        ({"type": "slate", "params": {"users": ["ann"]}}, "/params/users"),
        ({"type": "slate"}, "/params/segment"),
        ({"type": "slate", "params": {"segment": "user.age >"}}, "/params/segment"),
        ({"type": "slate", "params": {"segment": "*", "filter": "prize < 5"}}, "/params/filter"),
        ({"type": "slate", "params": {"segment": 'context.device = "phone"'}}, "/params/segment"),
        ({"type": "slate", "params": {"file": "users.jsonl"}}, "/params/file"),
        ({"type": "rerank", "params": {"user_ids": ["ann"]}}, "/params/user_ids"),
        ({"type": "slate", "params": {"segment": "*", "at": "yesterday"}}, "/params/at"),
        ({"type": "slate", "params": {"segment": "*", "count": 200}}, "/params/count"),
    ],
)
def test_a_body_that_cannot_be_a_job_is_refused_with_its_place(
    tmp_path: Path, body: dict[str, Any], pointer: str
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as client:
            refused = await client.post("/v1/jobs", json=body)
            assert refused.status_code == 422, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["errors"][0]["pointer"] == pointer
            assert (await client.get("/v1/jobs")).json()["items"] == []

    asyncio.run(scenario())


def test_jobs_are_for_admin_keys_and_an_unknown_one_is_a_404(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, KEYS) as client:
            assert (await client.post("/v1/jobs", json=BODY)).status_code == 401
            server = {"x-api-key": "sk_server_x"}
            assert (await client.post("/v1/jobs", json=BODY, headers=server)).status_code == 403
            admin = {"x-api-key": "sk_admin_x"}
            assert (await client.post("/v1/jobs", json=BODY, headers=admin)).json()["actor"] == "admin (key_admin)"
            assert (await client.get(f"/v1/jobs/job_{'0' * 24}", headers=admin)).status_code == 404

    asyncio.run(scenario())
