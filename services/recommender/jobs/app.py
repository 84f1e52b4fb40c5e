"""The jobs process: keeps the worker and wakes it, fires schedules, tells the webhook, purges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from services.recommender.jobs.broker import WakeUps, make_app
from services.recommender.jobs.desk import JobDesk
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.purge import JobPurge
from services.recommender.jobs.schedules import Schedule, Scheduler
from services.recommender.jobs.sweeper import Sweeper
from services.recommender.jobs.webhook import Webhook
from services.recommender.jobs.worker_process import WorkerProcess
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.load import Loaded
from shared.storage.database import Database
from shared.storage.keys import KeyCache
from shared.web.app import create_app
from shared.web.health import Readiness

TITLE = "SilkRec jobs"
SERVICE = "jobs"
MAX_BODY_BYTES = 1024


class Board:
    """What /ready and /health say. Without database or broker it is ready all the same: it waits for them."""

    def __init__(self) -> None:
        self.tasks: TaskOwner | None = None
        self.sweeper: Sweeper | None = None
        self.worker: WorkerProcess | None = None
        self.scheduler: Scheduler | None = None

    def ready(self) -> Readiness:
        if self.tasks is None or self.sweeper is None or self.worker is None or self.scheduler is None:
            return Readiness(False, {"service": "is starting"})
        told = {
            "database": self.sweeper.database_status,
            "broker": self.sweeper.broker_status,
            "worker": self.worker.status,
        }
        told |= {f"schedule {name}": why for name, why in self.scheduler.refused.items()}
        told |= {f"job {job_id}": f"cannot be settled: {why}" for job_id, why in self.sweeper.unsettled.items()}
        told |= {f"task {name}": "given up; restart the process" for name in sorted(self.tasks.dead)}
        return Readiness(True, told)

    def alive(self) -> bool:
        return self.tasks is None or not self.tasks.dead


def build(loaded: Loaded) -> FastAPI:
    """Nothing is opened before the lifespan begins. Raises ConfigurationError for a schedule that cannot be."""
    counts = _counts_of_workers(loaded)
    metrics, board = Metrics(SERVICE, children=counts), Board()
    for schedule in loaded.settings.jobs.schedules:
        Schedule.of(schedule, loaded.settings)  # one line that names it, before anything is started

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with _opened(loaded, metrics, board, counts) as state:
            yield state

    return create_app(
        title=TITLE,
        lifespan=lifespan,
        settings=loaded.settings,
        service=SERVICE,
        metrics=metrics,
        max_body_bytes=MAX_BODY_BYTES,
        ready=board.ready,
        alive=board.alive,
    )


def _counts_of_workers(loaded: Loaded) -> Path | None:
    """The folder of the worker's processes. None: they count in the operator's own, which is shown anyway."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return None
    # Containers may share the state folder, and then neither process ids nor ports tell them apart.
    return loaded.settings.state / "run" / f"jobs-{socket.gethostname()}-{loaded.settings.jobs.port}-metrics"


@contextlib.asynccontextmanager
async def _opened(
    loaded: Loaded, metrics: Metrics, board: Board, counts: Path | None
) -> AsyncIterator[Mapping[str, Any]]:
    settings = loaded.settings
    counted = JobMetrics(metrics)
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url(), settings.database)
        stack.push_async_callback(asyncio.to_thread, database.close)
        board.scheduler = Scheduler(JobDesk(database, settings), counted)
        board.worker = WorkerProcess(loaded.config_file, counted, counts=counts)
        queue = WakeUps(make_app(settings))
        board.sweeper = Sweeper(database, queue, settings.jobs, counted, restart_worker=board.worker.kill)
        purge = JobPurge(database, settings.job_output_dir(), settings.jobs.retention_days, counted)
        stack.push_async_callback(board.worker.close)
        webhook = Webhook(database, settings.jobs.webhook, counted)
        stack.push_async_callback(webhook.close)
        tasks = board.tasks = TaskOwner(metrics=metrics)
        stack.push_async_callback(tasks.close)
        keys = KeyCache(database)
        await keys.start(tasks)
        resources = ResourceMetrics(metrics, state=settings.state, pools={"database": database.use})
        tasks.start("resources", resources.run)
        tasks.start("worker", board.worker.run)
        tasks.start("sweeper", board.sweeper.run)
        tasks.start("schedules", board.scheduler.run)
        tasks.start("purge of jobs", purge.run)
        if settings.jobs.webhook.url:
            tasks.start("webhook", webhook.run)
        yield {"settings": settings, "keys": keys}
