"""The Celery worker: a master that holds the connection to the broker, and a process for each chunk under way.

A worker process opens database, Redis and the maker of slates when it gets its first chunk, and keeps them. A store
that is away is a chunk that waits, never the end of the process; a broker that is away is tried again for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Coroutine
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from services.recommender.jobs.alive import worker_name
from services.recommender.jobs.broker import TASK, WakeUps, make_app
from services.recommender.jobs.bulk import wiring
from services.recommender.jobs.metrics import ChunkMetrics
from services.recommender.jobs.work import SlateMaker
from services.recommender.jobs.working import Bench, turn
from shared.errors import DatabaseUnavailable, SilkrecError
from shared.observability import tracing
from shared.observability.context import TRACEPARENT_HEADER
from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.storage.database import Database
from shared.storage.redis import connect

CLOSE_S = 5.0
OPEN_S = 90.0
SERVICE = "jobs_worker"
_log = get_logger(__name__)


class Process:
    """What one worker process keeps between chunks: a loop in a thread of its own, stores, the maker."""

    def __init__(self, loaded: Loaded, metrics: Metrics, counted: ChunkMetrics) -> None:
        settings = loaded.settings
        self._settings, self._metrics = settings, metrics
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slates", daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self._database = Database(settings.database_url(), settings.database)
        redis = self.run(self._redis()).result(CLOSE_S)
        self._maker: SlateMaker | None = None
        self.bench = Bench(settings, self._database, redis, self.maker, self.run, worker_name(), counted)

    def run(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def maker(self) -> SlateMaker:
        """Opened at the first call. Raises DatabaseUnavailable."""
        if self._maker is None:
            opening = self._stack.enter_async_context(wiring.opened(self._settings, self._metrics))
            try:
                self._maker = self.run(opening).result(OPEN_S)
            except TimeoutError:
                raise DatabaseUnavailable("what slates are made of could not be read in time") from None
        return self._maker

    def close(self) -> None:
        try:
            self.run(self._stack.aclose()).result(CLOSE_S)
        except Exception as error:  # noqa: BLE001  (the process ends either way; what it held is the kernel's now)
            _log.warning("a worker process did not close everything", exc_info=error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        self._database.close()

    async def _redis(self) -> Any:
        settings = self._settings
        client = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)
        self._stack.push_async_callback(client.aclose, close_connection_pool=True)
        return client


class Worker:
    """`run` until SIGTERM, which lets chunks under way end."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.app = make_app(loaded.settings)
        self._wake_ups = WakeUps(self.app)
        self._process: Process | None = None
        self._metrics: Metrics | None = None
        self._counted: ChunkMetrics | None = None

        def received(task: Any) -> None:  # a plain function: Celery binds the task to it
            self.look(task.request.get(TRACEPARENT_HEADER))

        self.app.task(name=TASK, ignore_result=True, bind=True)(received)

    def look(self, sent: str | None = None) -> None:
        """One message: one chunk, and another message when there may be more. `sent`: the message's traceparent."""
        metrics, counted = self._counts()
        try:
            found = turn(self._opened(metrics, counted).bench, sent)
        except SoftTimeLimitExceeded:
            counted.looks.labels("hung").inc()
            _log.error("a look hung and is ended; its chunk is due again once its lease runs out")
            os._exit(os.EX_SOFTWARE)  # whatever hung holds locks and connections; the master starts a fresh process
        except SilkrecError as error:
            _log.warning("a look ended early; the sweeper sends the next one", code=error.code, cause=error.detail)
            counted.looks.labels("ended_early").inc()
            return
        counted.looks.labels("chunk" if found else "nothing").inc()
        if found:
            self._wake_ups.send_one()

    def run(self) -> None:
        """Blocks. Signals of Celery are global, so one worker a process."""
        setup_logging.connect(_keep_logging, weak=False)
        for chatty in ("celery.worker.strategy", "celery.app.trace"):  # two lines a message; a chunk has its own
            logging.getLogger(chatty).setLevel(logging.WARNING)
        worker_process_init.connect(self._begin, weak=False)
        worker_process_shutdown.connect(self._end, weak=False)
        worker = self.app.Worker(
            pool="prefork",
            hostname=f"silkrec@{socket.gethostname()}-{os.getpid()}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,  # no banner among the logs
            loglevel="WARNING",
        )
        worker.start()

    def _counts(self) -> tuple[Metrics, ChunkMetrics]:
        if self._metrics is None or self._counted is None:
            self._metrics = Metrics(SERVICE)
            self._counted = ChunkMetrics(self._metrics)
        return self._metrics, self._counted

    def _opened(self, metrics: Metrics, counted: ChunkMetrics) -> Process:
        if self._process is None:
            self._process = Process(self._loaded, metrics, counted)
        return self._process

    def _begin(self, **_: Any) -> None:
        """In a fresh process: Ctrl-C is the master's business, and requests go first."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        wiring.lower_priority(self._loaded.settings)
        self._counts()  # zeros before the first chunk, or a rate would not see it
        # Not in the master: neither gRPC nor the thread that sends spans survives a fork.
        tracing.configure(self._loaded.settings.tracing, service="jobs-worker")

    def _end(self, **_: Any) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        tracing.shutdown()


def end_with_stdin() -> None:
    """Whoever started this worker holds the other end: when it is gone, even by SIGKILL, chunks under way end and the
    worker with them. Read without Python's buffer, whose lock a forked process would inherit."""

    def wait() -> None:
        while os.read(0, 1):
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="starter's end", daemon=True).start()


def _keep_logging(**_: Any) -> None:
    """Celery would put its own handlers on; `logging.configure` has done that already."""
