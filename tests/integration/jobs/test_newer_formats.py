"""A job of a newer release beside a worker, sweeper, scheduler and purge of this one: left alone, seen, and going on
once the newer release is back (infra/decisions/0012-releases-side-by-side.md)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, update

from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.purge import JobPurge
from services.recommender.jobs.schedules import Scheduler
from services.recommender.jobs.shown import as_shown
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store.jobs import FORMAT, JobState
from services.recommender.jobs.sweeper import Sweeper
from services.recommender.jobs.working import folder_of, turn
from shared.observability.metrics import Metrics
from shared.storage.tables import batch_slates, job_chunks, job_events, jobs
from tests.integration.jobs.conftest import MakeWorld
from tests.integration.jobs.test_wake_ups import CountingQueue
from tests.integration.jobs.world import World

pytestmark = pytest.mark.integration

JOB = {"type": "slate", "params": {"segment": "*"}}


def write_as(world: World, job_id: str, written: int) -> None:
    """As a release of that format would have written it. Back at FORMAT it is what a worker of that release finds, to
    whom it is no newer than itself."""
    spec = {**world.job_row(job_id).spec, "format": written}
    with world.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(format=written, spec=spec))


def everything_of(world: World, job_id: str) -> list[list[Any]]:
    return [world.rows(table, job_id) for table in (jobs, job_chunks, job_events, batch_slates)]


def sweep(world: World, metrics: Metrics | None = None) -> list[int]:
    """What the queue was asked to hold; every lease's worker is dead."""
    queue, counted = CountingQueue(), JobMetrics(metrics or Metrics("jobs"))
    asyncio.run(Sweeper(world.database, queue, world.settings.jobs, counted, gone=lambda _: True).sweep())
    return queue.wanted


def test_a_worker_leaves_it_alone_whatever_its_chunks_say_and_goes_on_once_it_can_read_it(jobs_world: World) -> None:
    newer = jobs_world.submit(user_ids=["ann", "ben"], outputs=["database"])
    assert turn(jobs_world.bench)
    write_as(jobs_world, newer, FORMAT + 1)
    with jobs_world.database.write() as connection:
        connection.execute(update(job_chunks).where(job_chunks.c.chunk == 1).values(kind="distil"))
    found = everything_of(jobs_world, newer)
    own = jobs_world.submit(user_ids=["eve"], outputs=["database"])
    jobs_world.work()
    assert jobs_world.seen(own).job.state is JobState.SUCCEEDED
    assert everything_of(jobs_world, newer) == found
    with jobs_world.database.write() as connection:
        connection.execute(update(job_chunks).where(job_chunks.c.chunk == 1).values(kind="work"))
    write_as(jobs_world, newer, FORMAT)
    jobs_world.work()
    assert jobs_world.seen(newer).job.state is JobState.SUCCEEDED
    assert sorted(row.user_key for row in jobs_world.rows(batch_slates, newer)) == ["u:ann", "u:ben"]


def test_a_sweeper_wakes_nobody_for_it_ends_none_of_its_leases_and_shows_that_it_runs(jobs_world: World) -> None:
    newer = jobs_world.submit("export", user_ids=["ann"])
    jobs_world.database.transact(lambda connection: chunks.claim(connection, "newer:1", jobs_world.bench.rules))
    write_as(jobs_world, newer, FORMAT + 1)
    found, metrics = everything_of(jobs_world, newer), Metrics("jobs")
    assert sweep(jobs_world, metrics) == [0]
    assert 'silkrec_jobs_running_jobs{job_type="export"} 1.0' in metrics.render().decode()
    jobs_world.submit(user_ids=["eve"], outputs=["database"])
    assert sweep(jobs_world) == [1]
    assert everything_of(jobs_world, newer) == found
    jobs_world.let_pass(3600)
    assert sweep(jobs_world) == [1]
    write_as(jobs_world, newer, FORMAT)
    assert sweep(jobs_world) == [2]


def test_a_sweeper_settles_it_once_it_can_read_it(jobs_world: World) -> None:
    newer = jobs_world.submit(user_ids=["ann"], outputs=["database"])
    with jobs_world.database.write() as connection:
        connection.execute(update(job_chunks).where(job_chunks.c.job_id == newer).values(state="parked"))
    write_as(jobs_world, newer, FORMAT + 1)
    found = everything_of(jobs_world, newer)
    sweep(jobs_world)
    assert everything_of(jobs_world, newer) == found
    write_as(jobs_world, newer, FORMAT)
    sweep(jobs_world)
    assert jobs_world.seen(newer).job.state is JobState.FAILED


def test_the_purge_leaves_it_for_the_release_that_knows_all_that_belongs_to_it(jobs_world: World) -> None:
    newer = jobs_world.submit(user_ids=["ann"], outputs=["database", "parquet"])
    jobs_world.work()
    own = jobs_world.submit(user_ids=["ben"], outputs=["database"])
    jobs_world.work()
    with jobs_world.database.write() as connection:
        connection.execute(update(jobs).values(finished_at_us=1))
    write_as(jobs_world, newer, FORMAT + 1)
    found, folder = everything_of(jobs_world, newer), folder_of(jobs_world.settings, newer)
    purge = JobPurge(jobs_world.database, folder.parent, 14, JobMetrics(Metrics("jobs")))
    assert asyncio.run(purge.purge_once()) == 1
    assert jobs_world.rows(jobs, own) == []
    assert everything_of(jobs_world, newer) == found
    assert (folder / "manifest.json").exists()
    write_as(jobs_world, newer, FORMAT)
    assert asyncio.run(purge.purge_once()) == 1
    assert not folder.exists()
    assert everything_of(jobs_world, newer) == [[], [], [], []]


def test_a_schedule_that_the_newer_release_fired_is_not_fired_again(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.schedules": [{"name": "nightly", "crontab": "30 3 * * *", "job": JOB}]})
    now = datetime(2026, 1, 5, 3, 30, 2, tzinfo=UTC).timestamp()

    def scheduler() -> Scheduler:
        return Scheduler(world.desk, JobMetrics(Metrics("jobs")), now=lambda: now)

    assert asyncio.run(scheduler().look()) == 1
    ((newer,),) = [world.desk.page(limit=2, state=None, after=None)]
    write_as(world, newer.job.job_id, FORMAT + 1)
    found, own = everything_of(world, newer.job.job_id), scheduler()
    assert asyncio.run(own.look()) == 0
    assert own.refused == {}
    assert everything_of(world, newer.job.job_id) == found
    with world.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(jobs)) == 1


def test_the_digest_that_a_repeated_key_is_compared_by_is_the_same_in_every_release() -> None:
    """Else a key that comes again through the other release is a conflict, and a schedule that both fire is refused."""
    assert read_body(JOB).digest() == "6619ec3ebc64d6eae72a972d66c1f43cff7d59330ac8c5ccf07c66b0a58b80bb"


def test_what_it_asks_for_is_not_shown_and_whoever_cancels_it_leaves_no_name_behind(jobs_world: World) -> None:
    newer = jobs_world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(jobs_world.bench)
    write_as(jobs_world, newer, FORMAT + 1)
    spec = {**jobs_world.job_row(newer).spec, "params": {"people": ["ann"]}}
    with jobs_world.database.write() as connection:
        connection.execute(update(jobs).values(spec=spec, kind="distil"))
    shown = as_shown(jobs_world.seen(newer), detail=True)
    assert (shown["type"], shown["state"], shown["params"]) == ("distil", "running", {})
    assert shown["progress"] == {"done": 0, "total": 1, "failed": 0}
    assert jobs_world.desk.cancel(newer).job.state is JobState.CANCELLED
    assert jobs_world.job_row(newer).spec == {"format": FORMAT + 1}
    assert {row.state for row in jobs_world.rows(job_chunks, newer)} == {"done", "cancelled"}
