"""Every lease that is taken is counted once by how it ended."""

from __future__ import annotations

import asyncio
import threading

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.recommender.jobs.metrics import ChunkMetrics, JobMetrics
from services.recommender.jobs.store import chunks
from services.recommender.jobs.sweeper import Sweeper
from services.recommender.jobs.working import turn
from shared.errors import InferenceUnavailable
from shared.observability.metrics import Metrics
from tests.integration.jobs.conftest import MakeWorld
from tests.integration.jobs.world import World

pytestmark = pytest.mark.integration


def counted(world: World, name: str) -> dict[str, float]:
    """Value by the labels' values, those that are 0 left out."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(world.metrics.registry).decode()):
        for sample in family.samples:
            if sample.name == f"silkrec_jobs_worker_{name}" and sample.value:
                found[" ".join(value for label, value in sorted(sample.labels.items()) if label != "le")] = sample.value
    return found


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_chunks_that_succeed_wait_fail_and_are_parked(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 2})
    world.submit(user_ids=["ann", "ben"], outputs=["database"])
    assert turn(world.bench)
    assert counted(world, "chunks_total") == {"plan succeeded": 1}
    for error in (InferenceUnavailable("away"), RuntimeError("broken"), RuntimeError("broken")):
        world.maker.error = error
        world.let_pass(100)
        assert turn(world.bench)
    assert counted(world, "chunks_total") == {"plan succeeded": 1, "work waits": 1, "work retried": 1, "work parked": 1}
    assert counted(world, "chunks_started_total") == {"plan": 1, "work": 3}
    assert counted(world, "chunk_duration_seconds_count") == {"plan": 1, "work": 3}
    assert counted(world, "users_total") == {}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_users_that_were_made_are_counted_when_they_are_committed(make_world: MakeWorld) -> None:
    world = make_world()
    world.submit("export", user_ids=["ann", "ben"])
    world.work()
    assert counted(world, "users_total") == {"done": 2}
    assert counted(world, "chunks_total") == {"plan succeeded": 1, "work succeeded": 1, "publish succeeded": 1}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_chunk_of_a_cancelled_job_is_lost(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.lease_s": 0.3})
    job_id = world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(world.bench)
    world.maker.hang = True
    worker = threading.Thread(target=turn, args=(world.bench,))
    worker.start()
    assert world.maker.asked.wait(10)
    world.desk.cancel(job_id)
    worker.join(10)
    assert counted(world, "chunks_total") == {"plan succeeded": 1, "work lost": 1}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_leases_of_workers_that_vanish_are_counted_by_who_notices(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_attempts": 2})
    rules = world.bench.rules

    def vanish() -> None:
        assert world.database.transact(lambda connection: chunks.claim(connection, "gone", rules)) is not None

    world.submit(user_ids=["ann"], outputs=["database"])
    vanish()
    metrics = Metrics("jobs")
    sweeper = Sweeper(world.database, Silent(), world.settings.jobs, JobMetrics(metrics), gone=lambda _: True)
    asyncio.run(sweeper.sweep())
    text = metrics.render().decode()
    assert "silkrec_jobs_leases_ended_total 1.0" in text
    assert "silkrec_jobs_queue_messages 3.0" in text
    assert turn(world.bench)
    assert counted(world, "leases_taken_over_total") == {"": 1}
    for _ in range(2):
        vanish()
        world.let_pass(100)
    assert not turn(world.bench)
    assert counted(world, "chunks_total") == {"plan succeeded": 1, "work parked": 1}


class Silent:
    """Three messages wait."""

    waiting = 3

    def top_up(self, wanted: int) -> int:
        return 0


def test_every_outcome_is_there_before_it_happens() -> None:
    metrics = Metrics("jobs_worker")
    ChunkMetrics(metrics)
    text = metrics.render().decode()
    assert 'silkrec_jobs_worker_chunks_total{kind="work",outcome="parked"} 0.0' in text
    assert 'silkrec_jobs_worker_looks_total{found="hung"} 0.0' in text
