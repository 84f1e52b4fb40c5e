"""`silkrec serve jobs` as a process over MariaDB, woken through a real Redis and a real RabbitMQ, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, func, insert, select

from services.recommender.jobs.desk import JobDesk, Seen
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.store.jobs import JobState
from shared.observability.context import RequestContext
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import batch_slates, job_chunks, user_state
from tests.integration.recommender import shop
from tests.otlp import collecting
from tests.servers import MariaDB, RabbitMQ, free_port

pytestmark = pytest.mark.integration

USERS = 300
CHUNK_USERS = 60
WAIT_S = 60.0
ASKED = RequestContext("r-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@dataclass
class Service:
    """The process, and the stores behind it."""

    process: subprocess.Popen[bytes]
    database: Database
    desk: JobDesk
    log: Path
    url: str

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not true():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"waited in vain: {what}\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)

    def submit(self) -> str:
        body = read_body({"type": "slate", "params": {"segment": "*", "outputs": ["database"]}})
        return self.desk.submit(body, actor="test", origin=ASKED)[0].job.job_id

    def seen(self, job_id: str) -> Seen:
        return self.desk.get(job_id)

    def metrics(self) -> dict[str, float]:
        """By name and labels as they are written."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).raise_for_status().text
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in rows}

    def worker_at_work(self, job_id: str) -> int | None:
        """The process that has a chunk of users just now."""
        query = select(job_chunks.c.worker).where(
            job_chunks.c.job_id == job_id, job_chunks.c.kind == "work", job_chunks.c.state == "leased"
        )
        with self.database.read() as connection:
            worker = connection.scalar(query.limit(1))
        return None if worker is None else int(worker.rpartition(":")[2])


def test_a_worker_killed_in_a_chunk_leaves_every_user_with_exactly_one_slate_and_one_page_that_counts_it_all(
    tmp_path: Path, mariadb_server: MariaDB, redis_url: str
) -> None:
    with collecting() as (collector, endpoint):
        traced = {"SILKREC_TRACING__OTLP_ENDPOINT": endpoint, "SILKREC_TRACING__SAMPLE_RATIO": "0.0001"}
        with serving(tmp_path, mariadb_server, redis_url, redis_url, **traced) as service:
            killed_and_whole(service, lambda pid: os.kill(pid, signal.SIGKILL))
            told = service.metrics()
            logged = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    of_workers = [span for name, span in collector.spans() if name == "silkrec-jobs-worker"]
    assert of_workers, "the request was sampled, so are its chunks"
    assert {link.trace_id.hex() for span in of_workers for link in span.links} >= {ASKED.trace_id}
    assert max(len(span.links) for span in of_workers) == 2, "the other is the message"
    leased = [line for line in logged if line["message"] == "chunk leased"]
    assert {line["request_id"] for line in leased} == {ASKED.request_id}
    assert {span.trace_id.hex() for span in of_workers} <= {line["trace_id"] for line in leased}
    chunks = "silkrec_jobs_worker_chunks"
    assert told[f'{chunks}_total{{kind="work",outcome="succeeded"}}'] == USERS / CHUNK_USERS
    assert told[f'{chunks}_started_total{{kind="work"}}'] == USERS / CHUNK_USERS + 1
    assert told['silkrec_jobs_worker_users_total{outcome="done"}'] == USERS
    assert told["silkrec_jobs_worker_leases_taken_over_total"] == 1
    assert told['silkrec_jobs_worker_chunk_duration_seconds_count{kind="work"}'] == USERS / CHUNK_USERS
    assert told["silkrec_jobs_worker_resident_memory_bytes"] > 1e7
    assert told['silkrec_jobs_worker_pool_limit{pool="database"}'] > 0
    assert told["silkrec_jobs_resident_memory_bytes"] > 1e7
    assert told["silkrec_jobs_queue_messages"] >= 0


def test_rabbitmq_wakes_workers_and_the_whole_worker_may_be_killed(
    tmp_path: Path, mariadb_server: MariaDB, redis_url: str, rabbitmq_server: RabbitMQ
) -> None:
    with serving(tmp_path, mariadb_server, redis_url, rabbitmq_server.url) as service:
        killed_and_whole(service, lambda pid: os.killpg(os.getpgid(pid), signal.SIGKILL))


def killed_and_whole(service: Service, kill: Callable[[int], None]) -> None:
    job_id = service.submit()
    service.until(lambda: service.worker_at_work(job_id) is not None, "a worker has a chunk")
    victim = service.worker_at_work(job_id)
    assert victim is not None
    kill(victim)
    service.until(lambda: not service.seen(job_id).job.active, "the job ends")
    seen = service.seen(job_id)
    assert (seen.job.state, seen.progress.done, seen.progress.failed) == (JobState.SUCCEEDED, USERS, 0), seen
    with service.database.read() as connection:
        assert connection.scalar(select(func.max(job_chunks.c.token))) == 2, "no chunk had to be leased again"
        made = list(connection.scalars(select(batch_slates.c.user_key).where(batch_slates.c.job_id == job_id)))
    assert len(made) == USERS
    assert len(set(made)) == USERS
    assert httpx.get(f"{service.url}/ready", trust_env=False).json()["dependencies"]["broker"] == "ok"


@contextlib.contextmanager
def serving(folder: Path, mariadb: MariaDB, redis_url: str, broker_url: str, **more: str) -> Iterator[Service]:
    url = mariadb.create_schema(f"jobs{free_port()}")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path.cwd()),
        "SILKREC_STATE_DIR": str(folder / "var"),
        "SILKREC_DATABASE__URL": url,
        "SILKREC_REDIS__URL": redis_url,
        "SILKREC_BROKER__URL": broker_url.replace("/0", "/1") if broker_url.startswith("redis") else broker_url,
        "SILKREC_JOBS__PORT": str(free_port()),
        "SILKREC_JOBS__LEASE_S": "1",
        "SILKREC_JOBS__SWEEP_INTERVAL_S": "0.2",
        "SILKREC_JOBS__CHUNK_FIRST_USERS": str(CHUNK_USERS),
        "SILKREC_JOBS__CHUNK_MAX_USERS": str(CHUNK_USERS),
        **more,
    }
    database = Database(url, DatabaseSettings())
    migrate.upgrade(database)
    shop.put_items(database)
    database.transact(put_users)
    settings = load_settings(env={name: text for name, text in environment.items() if name.startswith("SILKREC_")})
    log = folder / "jobs.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", "serve", "jobs"],
            cwd=folder, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{settings.settings.jobs.port}"
    service = Service(process, database, JobDesk(database, settings.settings), log, address)
    try:
        service.until(lambda: listens(settings.settings.jobs.port), "the service listens")
        yield service
    finally:
        process.terminate()
        process.wait(30)
        database.close()


def put_users(connection: Connection) -> None:
    connection.execute(
        insert(user_state), [{"user_key": f"u:user-{number:05d}", "revision": 1} for number in range(USERS)]
    )


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
