"""Release N-1 becomes N under load, and N-1 again on N's schema.

    python -m benchmarks.upgrade [--from REV] [--rate 50] [--json FILE]

The code of a git revision is laid beside this tree (`git archive`; the same virtual environment, so the lock files
must agree) over one MariaDB and one Redis behind nginx, two replicas of each service. Poisson arrivals of
`/v1/recommend` and a tenth as many of `/v1/events`; latencies by the client's clock from when a request was due. All
N-1; N's `silkrec database upgrade` while N-1 serves; replicas one by one to N; then one by one back. One job is
submitted by N-1 and worked on through the upgrade, one by N while every worker is N-1's, one by N and worked on
through the rollback.

`failed_requests`: a 5xx or a connection error. `users_not_once`: users of the jobs whose slates are not exactly one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from benchmarks.replicas import Replica, fill_behind, servers, started
from benchmarks.report import machine, save, table
from benchmarks.rolling_restart import REPLICAS, TIMEOUT_S, Step, ask
from services.cli.tune.open_loop import poisson
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import batch_slates, jobs
from tests.e2e.suite import USERS, declare, event
from tests.nginx import Nginx, nginx
from tests.servers import mariadb, redis_server

REPOSITORY = Path(__file__).resolve().parent.parent
# The newest revision without migrations 0007 to 0009: jobs, the near door and the late listen are in it.
PREVIOUS = "c454bb2"
STEADY_S, SETTLE_S, JOBS_S = 8.0, 1.0, 240.0
JOB_USERS, SHORT_JOB_USERS = 6000, 300
LOCKS = ("requirements.lock",)


def lay(revision: str, folder: Path) -> Path:
    """The tree of a revision. Ends the program for one that is not here, or that needs other packages."""
    git = ["git", "-C", str(REPOSITORY)]
    packed = subprocess.run([*git, "archive", revision], capture_output=True, check=False, timeout=60)
    if packed.returncode != 0:
        ask_git = [*git, "rev-parse", "--is-shallow-repository"]
        shallow = subprocess.run(ask_git, capture_output=True, text=True, check=False, timeout=20)
        hint = "; this clone is shallow: git fetch --unshallow" if shallow.stdout.strip() == "true" else ""
        raise SystemExit(f"there is no revision {revision} here{hint}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tree:
        tree.extractall(folder, filter="data")
    for lock in LOCKS:
        pinned, here = ({*(tree / lock).read_text().split()} for tree in (folder, REPOSITORY))
        if lacking := sorted(name for name in pinned - here if "==" in name):
            raise SystemExit(f"{revision} needs {', '.join(lacking)}, which {lock} of this tree lacks")
    return folder


class Unit(Replica):
    """A replica that runs the code of one tree, and can be moved to the other."""

    def __init__(self, name: str, number: int, folder: Path, shared: dict[str, str], tree: Path) -> None:
        super().__init__(name, number, folder, shared)
        self._rest = list(self.command[1:])
        self.use(tree)

    def use(self, tree: Path) -> None:
        self.command = ["env", "-C", str(tree), f"PYTHONPATH={tree}", *self._rest]

    def move(self, tree: Path) -> None:
        self.stop()
        self.use(tree)
        self.start()


class World:
    def __init__(self, folder: Path, old: Path, stack: contextlib.ExitStack) -> None:
        self.old, self.new = old, REPOSITORY
        database = stack.enter_context(mariadb(folder / "mariadb")).create_schema("silkrec")
        redis = stack.enter_context(redis_server(folder / "redis")).url
        self.shared = {
            "CONFIG": str(declare(folder)),
            "DATABASE__URL": database,
            "REDIS__URL": redis,
            "BROKER__URL": redis.replace("/0", "/1"),
            "ARTIFACTS__URL": f"file://{folder / 'artifacts'}",
            "JOBS__CHUNK_MAX_USERS": "100",
            "JOBS__CHUNK_FIRST_USERS": "50",
        }
        self.database = Database(database, DatabaseSettings())
        stack.callback(self.database.close)
        told = dict(self.shared)
        engines = self._started("inference", folder, told, stack)
        told["RECOMMENDER__INFERENCE_TARGETS"] = ",".join(one.target for one in engines)
        features = self._started("features", folder, told, stack)
        recommenders = self._started("recommender", folder, told, stack)
        workers = self._started("jobs", folder, told, stack)
        self.units = {(one.name, one.number): one for one in (*engines, *features, *recommenders, *workers)}
        self.front: Nginx = stack.enter_context(
            nginx(
                folder / "nginx",
                recommenders=servers(recommenders),
                features=servers(features),
                inference=servers(engines),
                trusted="127.0.0.1",
            )
        )
        told_cli = {f"SILKREC_{name}": value for name, value in self.shared.items()} | {"PYTHONPATH": str(old)}
        # -m looks in the working folder first: N's code would migrate here, before anything was measured.
        with contextlib.chdir(old):
            fill_behind(folder, self.front, told_cli)

    def _started(self, name: str, folder: Path, told: dict[str, str], stack: contextlib.ExitStack) -> list[Unit]:
        return [started(stack, Unit(name, number, folder, told, self.old)) for number in range(REPLICAS)]

    def migrate(self) -> None:
        """By N's own command."""
        told = {**os.environ, **{f"SILKREC_{name}": value for name, value in self.shared.items()}}
        command = [sys.executable, "-m", "services.cli.main", "database", "upgrade"]
        subprocess.run(command, cwd=self.new, env={**told, "PYTHONPATH": str(self.new)}, check=True, timeout=120)

    def submit(self, name: str, users: int, recommender: int) -> str:
        """By that replica itself, so that it is known whose code wrote the job."""
        params = {"user_ids": [f"{name}-{number}" for number in range(users)], "outputs": ["database"], "count": 5}
        url = f"http://127.0.0.1:{self.units['recommender', recommender].port}/v1/jobs"
        answer = httpx.post(url, json={"type": "slate", "params": params}, timeout=20, trust_env=False)
        answer.raise_for_status()
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        with self.database.read() as connection:
            mine = batch_slates.c.job_id == job_id
            rows, users = connection.execute(
                select(func.count(), func.count(func.distinct(batch_slates.c.user_key))).where(mine)
            ).one()
            state = connection.scalar(select(jobs.c.state).where(jobs.c.job_id == job_id))
        return {"state": state, "rows": rows, "users": users}


async def load(url: str, rate: float, now: dict[str, Step]) -> None:
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
    async with (
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False, limits=limits) as http,
        asyncio.TaskGroup() as tasks,
    ):
        begin = time.perf_counter()
        for number, after in enumerate(poisson(rate, 3600)):
            await asyncio.sleep(max(0.0, begin + after - time.perf_counter()))
            tasks.create_task(ask(http, begin + after, now["reads"]))
            if number % 10 == 0:
                tasks.create_task(write(http, number, now["writes"]))


async def write(http: httpx.AsyncClient, number: int, step: Step) -> None:
    step.sent += 1
    rows = [event(f"u{random.randrange(USERS)}", 1_000_000 + number)]
    try:
        answer = await http.post("/v1/events", json={"events": rows})
    except httpx.HTTPError:
        step.failed += 1
        return
    step.failed += answer.status_code != httpx.codes.ACCEPTED


async def phases(world: World, rate: float) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    now = {"reads": Step("warm-up"), "writes": Step("warm-up")}
    running = asyncio.create_task(load(world.front.url, rate, now))

    async def during(name: str, work: Any) -> None:
        print(name, flush=True)
        now.update(reads=Step(name), writes=Step(name))
        reads, writes = now["reads"], now["writes"]
        await work
        await asyncio.sleep(SETTLE_S)
        rows.append({**reads.row(), "writes": writes.sent, "writes_failed": writes.failed})

    async def move(direction: str, tree: Path, names: Sequence[tuple[str, int]]) -> None:
        for name in names:
            await during(f"{name[0]} {name[1]} to {direction}", asyncio.to_thread(world.units[name].move, tree))

    first = [("recommender", 0), ("inference", 0), ("features", 0)]
    rest = [("recommender", 1), ("inference", 1), ("features", 1)]
    workers = [("jobs", 0), ("jobs", 1)]
    asked: dict[str, tuple[str, int]] = {}
    await asyncio.sleep(4)
    await during("all N-1", asyncio.sleep(STEADY_S))
    asked["by N-1, through the upgrade"] = (await asyncio.to_thread(world.submit, "a", JOB_USERS, 0), JOB_USERS)
    await during("migration", asyncio.to_thread(world.migrate))
    await move("N", world.new, first)
    job = await asyncio.to_thread(world.submit, "b", SHORT_JOB_USERS, 0)
    asked["by N, workers of N-1"] = (job, SHORT_JOB_USERS)
    await during("N-1 beside N", _ended(world, job))
    half = await asyncio.to_thread(world.job, asked["by N-1, through the upgrade"][0])
    await move("N", world.new, [*workers, *rest])
    await during("all N", asyncio.sleep(STEADY_S))
    asked["by N, through the rollback"] = (
        await asyncio.to_thread(world.submit, "c", JOB_USERS // 2, 1),
        JOB_USERS // 2,
    )
    await move("N-1", world.old, [*workers, *first, *rest])
    await during("all N-1, schema of N", asyncio.sleep(STEADY_S))
    for job_id, _ in asked.values():
        await during(f"{job_id} ends", _ended(world, job_id))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    ended = [{"job": name, "asked": users, **world.job(job_id)} for name, (job_id, users) in asked.items()]
    return {"rows": rows, "jobs": ended, "slates_of_the_first_job_before_workers_moved": half["rows"]}


async def _ended(world: World, job_id: str) -> None:
    until = time.monotonic() + JOBS_S
    while (await asyncio.to_thread(world.job, job_id))["state"] in ("planning", "running", "publishing"):
        if time.monotonic() > until:
            return  # its state and its missing users are in the result
        await asyncio.sleep(0.5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    random.seed(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers lead sessions of their own and would stay
    with tempfile.TemporaryDirectory(prefix="silkrec-up-") as name, contextlib.ExitStack() as stack:
        old = lay(options.revision, Path(name) / "previous")
        found = asyncio.run(phases(World(Path(name), old, stack), options.rate))
    rows, ended = found["rows"], found["jobs"]
    measured = {
        "requests": sum(row["sent"] for row in rows),
        "failed_requests": sum(row["failed"] for row in rows),
        "writes": sum(row["writes"] for row in rows),
        "failed_writes": sum(row["writes_failed"] for row in rows),
        "users_not_once": sum(abs(one["asked"] - one["users"]) + one["rows"] - one["users"] for one in ended),
        "jobs_succeeded": sum(one["state"] == "succeeded" for one in ended),
    }
    about = {"machine": machine(), "workload": {"previous": options.revision, "rate": options.rate}}
    return {**about, "measured": measured, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="revision", default=PREVIOUS, metavar="REV")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    table("phases", result["rows"])
    table("jobs", result["jobs"])
    table("upgrade", [result["measured"]])
    save(result, options.json)


if __name__ == "__main__":
    main()
