"""`silkrec serve all`: starts each service as a process, starts again what dies or hangs, ends all together.

A child is started again after 0.1 s, doubling to 5 s while it keeps dying, for ever: only the operator gives up. One
whose /health fails three times in a row after it was healthy is killed first. What a dead child leaves of its process
group (nginx's workers outlive a killed master and keep its ports) is killed before it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from services.cli import embedded_redis
from shared.errors import ConfigurationError
from shared.observability.logging import get_logger
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage.redis import RedisFailure, connect

FIRST_WAIT_S, LONGEST_WAIT_S, STABLE_S = 0.1, 5.0, 30.0
HEALTH_EVERY_S, HEALTH_TIMEOUT_S, HEALTH_FAILURES = 2.0, 3.0, 3
START_S = 10.0
STOP_S = 10.0
_PR_SET_PDEATHSIG = 1
_log = get_logger(__name__)


@dataclass
class Child:
    """One process. `health` is a URL, or empty for a server that has none; `ends_with` asks it to finish and go."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    health: str = ""
    log: Path | None = None
    ends_with: signal.Signals = signal.SIGTERM
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    _failures: int = field(default=0, repr=False)

    async def keep(self, changed: asyncio.Event) -> None:
        """For ever: start, wait for its end, wait a little, again."""
        wait_s = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            with self._output() as output:
                self.process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env=self.environment,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends them in order
                    preexec_fn=_die_with_parent,
                )
            self.starts += 1
            self._failures = 0
            changed.set()
            code = await self.process.wait()
            _kill_group(self.process.pid)
            wait_s = FIRST_WAIT_S if time.monotonic() - began > STABLE_S else min(LONGEST_WAIT_S, wait_s * 2)
            _log.error("a service ended and is started again", child=self.name, exit_code=code, wait_s=wait_s)
            await asyncio.sleep(wait_s)

    async def watch(self, http: httpx.AsyncClient) -> None:
        """For ever: asks /health; kills what was healthy and no longer answers."""
        healthy_start = 0
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            if await self._is_healthy(http):
                healthy_start, self._failures = self.starts, 0
                continue
            self._failures += 1
            if self.process is not None and healthy_start == self.starts and self._failures >= HEALTH_FAILURES:
                _log.error("a service does not answer /health and is killed", child=self.name)
                self._failures = 0
                _send(self.process, signal.SIGKILL)

    async def end(self) -> None:
        if self.process is None:
            return
        if self.process.returncode is None:
            _send(self.process, self.ends_with)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_S)
            except TimeoutError:
                _log.error("a service did not end in time and is killed", child=self.name, waited_s=STOP_S)
                _send(self.process, signal.SIGKILL)
                await self.process.wait()
        _kill_group(self.process.pid)

    async def _is_healthy(self, http: httpx.AsyncClient) -> bool:
        try:
            answer = await http.get(self.health, timeout=HEALTH_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    @contextlib.contextmanager
    def _output(self) -> Iterator[IO[bytes] | None]:
        if self.log is None:
            yield None
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as file:
            yield file


async def supervise(
    loaded: Loaded, log_dir: Path | None, *, front: Sequence[Child] = (), beside: Sequence[Child] = ()
) -> int:
    """Until SIGTERM or SIGINT; returns the exit status. Raises ConfigurationError. `front` ends before the services, so
    that what it accepted is still answered; `beside` with them."""
    settings = loaded.settings
    settings.socket_path("suite").parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with _only_one(settings):
        services = [*_services(loaded, log_dir), *beside]
        await _run(stop, _redis(settings, log_dir), services, list(front), settings)
    return 0


async def _run(
    stop: asyncio.Event, redis: Child | None, services: list[Child], front: list[Child], settings: Settings
) -> None:
    changed, children = asyncio.Event(), [*([redis] if redis else []), *services, *front]
    tasks = [asyncio.create_task(stop.wait()), asyncio.create_task(_publish(children, settings, changed))]
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            if redis is not None:
                tasks.append(asyncio.create_task(redis.keep(changed)))
                await _answers(settings, redis)
            tasks += [asyncio.create_task(child.keep(changed)) for child in (*services, *front)]
            tasks += [asyncio.create_task(child.watch(http)) for child in (*services, *front)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a loop of ours ends by its fault only
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(child.end() for child in front))
            await asyncio.gather(*(child.end() for child in services))
            if redis is not None:  # last: the services write to it until they end
                await redis.end()
            state_file(settings).unlink(missing_ok=True)


async def _answers(settings: Settings, redis: Child) -> None:
    """Waits for the embedded Redis, so that the services find it. Raises ConfigurationError."""
    client = connect(settings.redis_url(), settings.redis, timeout_ms=1000)
    try:
        for _ in range(round(START_S / 0.05)):
            with contextlib.suppress(*RedisFailure):
                if await client.ping():
                    return
            await asyncio.sleep(0.05)
        raise ConfigurationError(f"the embedded Redis does not start: {' '.join(redis.command)}")
    finally:
        await client.aclose(close_connection_pool=True)


def _redis(settings: Settings, log_dir: Path | None) -> Child | None:
    if not embedded_redis.wanted(settings):
        return None
    return Child("redis", embedded_redis.command(settings), dict(os.environ), log=log_of(log_dir, "redis"))


def addresses(settings: Settings) -> dict[str, str]:
    """Base URL of each service that the supervisor starts, in the order of their start."""
    found = {
        "inference": _url(settings.inference.host, settings.inference.port),
        "features": _url(settings.features.host, settings.features.port),
        "recommender": _url(settings.recommender.host, settings.recommender.port),
        "jobs": _url(settings.jobs.host, settings.jobs.port),
    }
    if settings.alerts.dingtalk.access_token is not None or settings.alerts.wecom.key is not None:
        found["alerts"] = _url(settings.alerts.host, settings.alerts.port)
    return found


def _services(loaded: Loaded, log_dir: Path | None) -> list[Child]:
    """One URL serves everything: the recommender forwards what writes, unless told otherwise."""
    settings = loaded.settings
    environment = dict(os.environ)
    if loaded.config_file is not None:
        environment["SILKREC_CONFIG"] = str(loaded.config_file)
    if not settings.recommender.features_url:
        environment["SILKREC_RECOMMENDER__FEATURES_URL"] = _url(settings.features.host, settings.features.port)
    return [
        Child(
            name,
            [sys.executable, "-m", "services.cli.main", "serve", name, "--supervised"],
            environment,
            f"{url}/health",
            log_of(log_dir, name),
        )
        for name, url in addresses(settings).items()
    ]


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  (where to ask, not where to bind)
    return f"http://{host}:{port}"


def log_of(log_dir: Path | None, name: str) -> Path | None:
    """The file that a child's output goes to; None: standard error."""
    return None if log_dir is None else log_dir.resolve() / f"{name}.log"


def last_line(log: Path) -> str:
    """What a child said last, for an error message."""
    if not log.exists():
        return f"see {log.parent}/"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1][:300]} (more in {log})" if lines else f"see {log}"


def _die_with_parent() -> None:
    """In the child, before its program: SIGTERM when the supervisor is gone. Redis does not read standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _kill_group(leader: int) -> None:
    """Each child leads a session of its own, so its group holds what it left behind and nothing else."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def state_file(settings: Settings) -> Path:
    """Who runs: {pid, services: {name: {pid, born, starts, url}}}, `born` in seconds since 1970. There while the
    supervisor is, and behind one that was killed (`services/cli/up/leftovers.py`)."""
    return settings.state / "run" / "suite.json"


async def _publish(children: list[Child], settings: Settings, changed: asyncio.Event) -> None:
    path = state_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        await changed.wait()
        changed.clear()
        told: dict[str, Any] = {
            child.name: {
                "pid": child.process.pid if child.process else None,
                "born": _born(child),
                "starts": child.starts,
                "url": "/".join(child.health.split("/", 3)[:3]),
            }
            for child in children
        }
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps({"pid": os.getpid(), "services": told}))
        draft.replace(path)


def _born(child: Child) -> float | None:
    """With the id it names one process: ids come again, and not within the same hundredth of a second."""
    if child.process is None:
        return None
    try:
        return psutil.Process(child.process.pid).create_time()
    except psutil.NoSuchProcess:  # gone meanwhile: its next start is published too
        return None


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Two suites over one state folder would steal each other's sockets. The lock's file says whose it is."""
    path = _lock_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"a suite runs in {settings.state} already; end it, or set SILKREC_STATE_DIR to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def holder(settings: Settings) -> int | None:
    """Process id of the supervisor of this state folder, None when none runs; 0 while it has not written it yet."""
    try:
        with _lock_file(settings).open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read().strip() or 0)
            return None
    except FileNotFoundError:
        return None


def _lock_file(settings: Settings) -> Path:
    return settings.state / "run" / "suite.lock"
