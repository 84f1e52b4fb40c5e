"""The suite as several processes on one machine: replicas of each service, a real nginx on infra/nginx's files in
front, one private MariaDB and Redis behind, and a small shop with a trained model in it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from tests.e2e.suite import Suite, declare, fill, train_and_promote
from tests.nginx import Nginx, nginx
from tests.servers import Process, free_port, mariadb, redis_server

R = TypeVar("R", bound="Replica")
MAIN = ("-c", "from services.cli.main import main; main()")


class Replica(Process):
    """One service with a state folder of its own, on `core` or on any. `main`: what Python runs; `serve <name>` is put
    behind it."""

    def __init__(
        self,
        name: str,
        number: int,
        folder: Path,
        shared: dict[str, str],
        main: Sequence[str] = MAIN,
        *,
        core: int | None = None,
    ) -> None:
        self.name, self.number, self.port = name, number, free_port()
        self.state = folder / f"{name}-{number}"
        self.state.mkdir(parents=True, exist_ok=True)
        self.target = f"unix:{self.state / 'run' / 'inference.sock'}"
        told = {
            "INFERENCE__GRPC_PORT": "-1",
            **shared,
            "STATE_DIR": str(self.state),
            f"{name.upper()}__PORT": str(self.port),
        }
        command = [] if core is None else ["taskset", "-c", str(core)]
        command += ["env", *(f"SILKREC_{key}={value}" for key, value in told.items())]
        command += [sys.executable, *main, "serve", name]
        super().__init__(command, self.state / "log", self._ready)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """`env` becomes the service, so it has its pid; `taskset` before it too."""
        assert self.process is not None
        return self.process.pid

    def _ready(self) -> bool:
        return is_ok(f"{self.url}/ready")

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class World:
    recommenders: list[Replica]
    features: list[Replica]
    engines: list[Replica]
    nginx: Nginx
    stores: dict[str, int]
    """Process ids by name."""

    @property
    def replicas(self) -> list[Replica]:
        return [*self.recommenders, *self.features, *self.engines]

    def pids(self) -> dict[str, int]:
        """Of all that runs now, by name."""
        assert self.nginx.process is not None
        workers = psutil.Process(self.nginx.process.pid).children()
        return {
            **{f"{replica.name} {replica.number}": replica.pid for replica in self.replicas},
            **{f"nginx {number}": worker.pid for number, worker in enumerate(workers)},
            **self.stores,
        }


def cpu_s(pid: int) -> float:
    """Of all threads, ended ones included, in nanosecond steps (clock_getcpuclockid(3)); /proc counts in 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def world(folder: Path, count: int = 2, main: Sequence[str] = MAIN) -> Iterator[World]:
    """`count` replicas of each service, all ready, nothing degraded."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(mariadb(folder / "mariadb"))
        redis = stack.enter_context(redis_server(folder / "redis"))
        config = declare(folder)
        shared = {
            "CONFIG": str(config),
            "DATABASE__URL": database.create_schema("silkrec"),
            "REDIS__URL": redis.url,
            "ARTIFACTS__URL": f"file://{folder / 'artifacts'}",
        }

        def replicas(name: str, told: dict[str, str]) -> list[Replica]:
            return [started(stack, Replica(name, number, folder, told, main)) for number in range(count)]

        engines = replicas("inference", shared)
        targets = {**shared, "RECOMMENDER__INFERENCE_TARGETS": ",".join(engine.target for engine in engines)}
        features, recommenders = replicas("features", targets), replicas("recommender", targets)
        front = stack.enter_context(
            nginx(
                folder / "nginx",
                recommenders=servers(recommenders),
                features=servers(features),
                inference=servers(engines),
                trusted="127.0.0.1",
            )
        )
        fill_behind(folder, front, {f"SILKREC_{name}": value for name, value in shared.items()})
        for replica in engines:  # ready now that there is a model
            while not replica.answers():
                time.sleep(0.1)
        stores = {
            name: server.process.pid
            for name, server in (("mariadb", database), ("redis", redis))
            if server.process is not None
        }
        yield World(recommenders, features, engines, front, stores)


def started(stack: contextlib.ExitStack, replica: R) -> R:
    """Alive, maybe not ready: an engine waits for a model, a recommender for a release. A restart waits for /ready."""
    ready = replica.answers
    replica.answers = lambda: is_ok(f"{replica.url}/health")
    replica.start()
    replica.answers = ready
    stack.callback(replica.stop)
    return replica


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def servers(replicas: Sequence[Replica]) -> str:
    return ", ".join(f"127.0.0.1:{replica.port}" for replica in replicas)


def fill_behind(folder: Path, front: Nginx, environment: dict[str, str]) -> None:
    told = {**os.environ, **environment, "SILKREC_STATE_DIR": str(folder / "cli")}
    assert front.process is not None
    with httpx.Client(base_url=front.url, timeout=20, trust_env=False) as http:
        suite = Suite(folder, told, front.process, http, {})
        fill(suite)
        train_and_promote(suite)
