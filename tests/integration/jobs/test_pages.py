"""The dashboard's pages of jobs, over jobs of a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
import pytest

from services.recommender.jobs.work import SlateAsk, UserSlate
from tests.asgi import running
from tests.dashboard_app import FakeKeys, FakePort, application, some_keys
from tests.integration.jobs.conftest import MakeWorld
from tests.integration.jobs.world import World, slate_of
from tests.unit.dashboard.test_access import ORIGIN, fields, sign_in

pytestmark = pytest.mark.integration


def looked_at(
    world: World, scenario: Callable[[httpx.AsyncClient], Awaitable[None]], keys: FakeKeys | None = None
) -> None:
    async def look() -> None:
        async with running(application(FakePort(), keys, jobs=world.desk), base_url="http://localhost") as client:
            await scenario(client)

    asyncio.run(look())


def test_a_page_shows_how_far_each_job_is_and_what_failed_of_it(make_world: MakeWorld) -> None:
    def broken_for_ann(ask: SlateAsk) -> UserSlate:
        made = slate_of(ask)
        return replace(made, error="<b>no such user</b>") if ask.user_key == "u:ann" else made

    world = make_world()
    world.maker.make = broken_for_ann
    job_id = world.submit(user_ids=["ann", "bob", "cy"], outputs=["database"])

    async def before(client: httpx.AsyncClient) -> None:
        html = (await client.get("/dashboard/jobs")).text
        assert f"/dashboard/jobs/{job_id}" in html
        assert "planning" in html

    async def after(client: httpx.AsyncClient) -> None:
        listed = (await client.get("/dashboard/jobs.json")).json()
        assert [(one["job_id"], one["state"]) for one in listed] == [(job_id, "succeeded")]
        assert listed[0]["progress"] == {"done": 2, "total": 3, "failed": 1}
        csv = (await client.get("/dashboard/jobs.csv")).text
        assert f"{job_id},slate,succeeded,2,3,1," in csv
        html = (await client.get(f"/dashboard/jobs/{job_id}?lang=zh")).text
        assert "u:ann" in html
        assert "&lt;b&gt;no such user" in html  # other people's text is no markup
        assert "取消任务" not in html  # it is over
        assert 'value="100.0"' in html

    looked_at(world, before)
    world.work()
    looked_at(world, after)


def test_a_job_is_cancelled_by_an_editor_who_confirms_and_by_no_viewer(jobs_world: World) -> None:
    job_id = jobs_world.submit(user_ids=["ann"], outputs=["database"])
    page = f"/dashboard/jobs/{job_id}/cancel"

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get(page)).status_code == 303
        await sign_in(client, "sk_admin_x")
        assert (await client.post(page, data={"seen": "1"}, headers=ORIGIN)).status_code == 403  # no token of the page
        assert jobs_world.seen(job_id).job.active
        answer = await client.post(page, data=await fields(client, page), headers=ORIGIN)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/dashboard/jobs/{job_id}")
        assert "cancelled" in (await client.get(f"/dashboard/jobs/{job_id}")).text
        again = await client.post(page, data=await fields(client, page), headers=ORIGIN)
        assert again.status_code == 303  # as the API: cancelling again changes nothing
        assert (await client.get("/dashboard/jobs/job_000000000000000000000000")).status_code == 404

    looked_at(jobs_world, scenario, some_keys())
    assert jobs_world.seen(job_id).job.state.value == "cancelled"
