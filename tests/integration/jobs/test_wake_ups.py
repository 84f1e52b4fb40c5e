"""The broker's queue: filled to its mark and never beyond, on a real Redis and a real RabbitMQ."""

from __future__ import annotations

import asyncio
import socket
import subprocess

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from services.recommender.jobs.alive import worker_name
from services.recommender.jobs.app import Board
from services.recommender.jobs.broker import QUEUE, BrokerUnavailable, WakeUps, make_app
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.schedules import Scheduler
from services.recommender.jobs.store import chunks
from services.recommender.jobs.store.chunks import Done
from services.recommender.jobs.store.jobs import JobState
from services.recommender.jobs.sweeper import Sweeper
from services.recommender.jobs.worker_process import WorkerProcess
from services.recommender.jobs.working import turn
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage.tables import job_chunks, jobs
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


def test_a_job_that_cannot_be_settled_is_told_once_and_holds_up_no_other(make_world: MakeWorld) -> None:
    world, metrics, ids = make_world(), Metrics("jobs"), list[str]()
    for _ in range(3):
        ids.append(world.submit(user_ids=["ann"], outputs=["parquet"]))
    good = world.job_row(ids[0]).spec
    with world.database.write() as connection:
        connection.execute(update(job_chunks).values(state="done"))
        connection.execute(update(jobs).values(planned=True))
        for job_id, spec in ((ids[0], {"format": 1, "params": {"scene": 7}}), (ids[1], [1])):
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(spec=spec))
    sweeper = Sweeper(world.database, CountingQueue(), world.settings.jobs, JobMetrics(metrics))
    with capture_logs() as logged:
        assert asyncio.run(sweeper.sweep()) == 1
        asyncio.run(sweeper.sweep())
    assert world.seen(ids[2]).job.state is JobState.PUBLISHING
    assert set(sweeper.unsettled) == set(ids[:2])
    assert "/params/scene" in sweeper.unsettled[ids[0]]
    board, counted = Board(), JobMetrics(Metrics("board"))
    board.tasks, board.sweeper, board.scheduler = TaskOwner(), sweeper, Scheduler(world.desk, counted)
    board.worker = WorkerProcess(None, counted, counts=None)
    assert board.ready().dependencies[f"job {ids[1]}"] == "cannot be settled: TypeError"
    told = {one["job_id"]: one for one in logged if one["log_level"] == "error"}
    assert [one["job_id"] for one in logged if one["log_level"] == "error"] == list(told)
    assert set(told) == set(ids[:2])
    assert isinstance(told[ids[1]]["exc_info"], TypeError), "what nobody expected has its traceback"
    assert "silkrec_jobs_settle_failures_total 4.0" in metrics.render().decode()
    with world.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == ids[0]).values(spec=good))
    asyncio.run(sweeper.sweep())
    assert world.seen(ids[0]).job.state is JobState.PUBLISHING
    assert set(sweeper.unsettled) == {ids[1]}


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
