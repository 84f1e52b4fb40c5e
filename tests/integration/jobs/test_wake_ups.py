"""The broker's queue: filled to its mark and never beyond, on a real Redis and a real RabbitMQ."""

from __future__ import annotations

import asyncio
import socket
import subprocess

import pytest

from services.recommender.jobs.alive import worker_name
from services.recommender.jobs.broker import QUEUE, BrokerUnavailable, WakeUps, make_app
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store.chunks import Done
from services.recommender.jobs.store.jobs import JobState
from services.recommender.jobs.sweeper import Sweeper
from services.recommender.jobs.working import turn
from shared.observability.metrics import Metrics
from shared.settings.roots import Settings
from tests.integration.jobs.conftest import MakeWorld
from tests.servers import free_port

pytestmark = pytest.mark.integration


def settings(broker_url: str) -> Settings:
    return Settings.model_validate({"broker": {"url": broker_url}})


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url")).replace("/0", "/1")
    return str(request.getfixturevalue("rabbitmq_server").url)


def test_the_queue_is_brought_to_its_mark_and_never_beyond(broker_url: str) -> None:
    app = make_app(settings(broker_url))
    queue = WakeUps(app)
    assert queue.top_up(0) == 0
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge(QUEUE)  # what an earlier test left
    assert queue.top_up(3) == 3
    assert queue.top_up(3) == 0
    assert queue.top_up(5) == 2
    with app.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as waiting:
        for _ in range(5):
            waiting.get(timeout=5).ack()
    assert queue.top_up(1) == 1
    with app.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as waiting:
        waiting.get(timeout=5).ack()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_is_one_error_of_ours(scheme: str) -> None:
    queue = WakeUps(make_app(settings(f"{scheme}://127.0.0.1:{free_port()}/1")))
    with pytest.raises(BrokerUnavailable):
        queue.top_up(1)
    queue.send_one()


class CountingQueue:
    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.waiting = 0

    def top_up(self, wanted: int) -> int:
        self.wanted.append(wanted)
        self.waiting = wanted
        return wanted


def test_however_many_chunks_are_due_the_sweeper_asks_for_a_bounded_queue(make_world: MakeWorld) -> None:
    world = make_world(**{"jobs.max_waiting_wakeups": 8})
    queue = CountingQueue()
    sweeper = Sweeper(world.database, queue, world.settings.jobs, JobMetrics(Metrics("jobs")))
    asyncio.run(sweeper.sweep())
    world.submit(user_ids=[f"u{number}" for number in range(300)], outputs=["database"])
    asyncio.run(sweeper.sweep())
    assert turn(world.bench)
    asyncio.run(sweeper.sweep())
    assert queue.wanted == [0, 1, 8]


def test_the_types_of_running_jobs_and_their_last_progress_are_exported(make_world: MakeWorld) -> None:
    world, metrics = make_world(), Metrics("jobs")
    sweeper = Sweeper(world.database, CountingQueue(), world.settings.jobs, JobMetrics(metrics))
    world.submit(user_ids=["ann"], outputs=["database"])
    world.submit(user_ids=["bob"], outputs=["database"])
    asyncio.run(sweeper.sweep())
    running, progress = 'silkrec_jobs_running_jobs{job_type="slate"}', "silkrec_jobs_last_progress_timestamp_seconds"
    shown = metrics.render().decode()
    assert f"{running} 2.0" in shown
    assert f'{progress}{{job_type="slate"}} 1.' in shown  # seconds since 1970
    while turn(world.bench):
        pass
    asyncio.run(sweeper.sweep())
    assert f"{running} 0.0" in metrics.render().decode()


def test_the_lease_of_a_dead_process_of_this_machine_ends_at_once_and_of_no_other(make_world: MakeWorld) -> None:
    world = make_world()
    world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(world.bench)
    ended = subprocess.Popen(["true"])
    ended.wait()
    rules, database = world.bench.rules, world.database

    def sweep() -> None:
        asyncio.run(Sweeper(database, CountingQueue(), world.settings.jobs, JobMetrics(Metrics("jobs"))).sweep())

    def leased_by(worker: str) -> bool:
        return database.transact(lambda connection: chunks.claim(connection, worker, rules)) is not None

    assert leased_by(f"{socket.gethostname()}:{ended.pid}")
    assert not leased_by("waits for the lease")
    sweep()
    assert leased_by(f"another-host:{ended.pid}")
    sweep()
    assert not leased_by("waits for the lease")
    world.let_pass(rules.lease_us / 1e6)
    assert leased_by(worker_name())
    sweep()
    assert not leased_by("waits for the lease")


def test_a_job_whose_last_worker_died_behind_its_commit_is_settled_by_the_sweeper(make_world: MakeWorld) -> None:
    world = make_world()
    job_id = world.submit(user_ids=["ann"], outputs=["database"])
    assert turn(world.bench)
    lease = world.database.transact(lambda connection: chunks.claim(connection, "dies", world.bench.rules))
    assert lease is not None
    done = Done([], 1, (), "0" * 64, 1.0)
    world.database.transact(lambda connection: chunks.finish(connection, lease, done))
    assert world.seen(job_id).job.state is JobState.RUNNING
    asyncio.run(Sweeper(world.database, CountingQueue(), world.settings.jobs, JobMetrics(Metrics("jobs"))).sweep())
    assert world.seen(job_id).job.state is JobState.SUCCEEDED
