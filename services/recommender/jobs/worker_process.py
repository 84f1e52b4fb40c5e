"""Starts the worker as a process of its own and keeps it: what ends is started again, for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.recommender.jobs.metrics import JobMetrics
from shared.observability.logging import get_logger

FIRST_WAIT_S, LONGEST_WAIT_S, STABLE_S = 0.1, 5.0, 30.0
# A chunk under way may end first; its lease would only run out later, and a supervisor waits 10 s for all of us.
STOP_S = 6.0
COMMAND = (sys.executable, "-m", "services.cli.main", "serve", "worker", "--supervised")
_log = get_logger(__name__)


class WorkerProcess:
    """Give `run` to a TaskOwner; `close` it behind the owner. `status`: `ok`, or that it is being started. `counts`:
    the folder in which its processes keep their metrics, emptied at each start: a worker that keeps ending leaves no
    files behind."""

    def __init__(
        self,
        config: Path | None,
        metrics: JobMetrics,
        *,
        counts: Path | None = None,
        command: Sequence[str] = COMMAND,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._environment = {**os.environ, **({} if config is None else {"SILKREC_CONFIG": str(config)})}
        self._counts = counts
        if counts is not None:
            self._environment["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
        self._metrics = metrics
        self._command = command
        self._sleep = sleep
        self.process: asyncio.subprocess.Process | None = None

    @property
    def status(self) -> str:
        running = self.process is not None and self.process.returncode is None
        return "ok" if running else "the worker process is being started"

    def kill(self) -> None:
        """As a crash would, with all its processes; `run` starts it again."""
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def run(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            self._empty_counts()
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            self._metrics.worker_starts.inc()
            code = await self.process.wait()
            wait_s = FIRST_WAIT_S if time.monotonic() - began > STABLE_S else min(LONGEST_WAIT_S, wait_s * 2)
            _log.error("the worker ended and is started again", exit_code=code, wait_s=wait_s)
            await self._sleep(wait_s)

    def _empty_counts(self) -> None:
        if self._counts is None:
            return
        shutil.rmtree(self._counts, ignore_errors=True)
        self._counts.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        """Its chunk may end; then the whole session of the worker goes, so that no process of it is left behind."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            _log.warning("the worker did not end in time and is killed", waited_s=STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
