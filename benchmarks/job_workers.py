"""One job by one worker and by two: what a second machine adds, and what engines behind nginx cost.

    python -m benchmarks.job_workers [--users 6000] [--rounds 3] [--json FILE]

A machine here is one core: `taskset` keeps its engine and its jobs process with the Celery worker there, so that the
second machine brings as much as the first. MariaDB and the broker run on both cores, as do the features and
recommender services, which idle during jobs. In each round the same job (`at` and seed fixed) runs three times in an
order that turns:

- `one`: the first machine alone, asking its own engine over the Unix socket;
- `two`: both machines, each asking its own;
- `nginx`: both machines asking nginx (infra/nginx's files), which spreads their calls over both engines by user.

measured: users/s of each from a job's first lease to its end, medians over rounds; `two_over_one`, `nginx_over_two`;
`equal`: all checksums over users and items are one, so whoever made a slate made the same. Every job's Parquet is
counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.job_kills import put_users
from benchmarks.replicas import Replica, started
from benchmarks.report import machine, save, table
from services.recommender.jobs.desk import JobDesk, Seen
from services.recommender.jobs.outputs import parquet
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.working import folder_of
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from tests.e2e.suite import Suite, declare, fill, train_and_promote
from tests.nginx import nginx
from tests.servers import free_port, mariadb, redis_server

ARMS = ("one", "two", "nginx")
LOOK_S, JOB_LIMIT_S = 0.1, 900.0
EVENTS_EACH, COUNT = 12, 10


@dataclass
class World:
    folder: Path
    settings: dict[str, str]
    """What all services share."""
    engines: list[str]
    """Their sockets, machine by machine."""
    front: str
    """nginx's door to both engines, gRPC."""
    desk: JobDesk
    users: int
    at: str
    """The time of every job's slates."""


@contextlib.contextmanager
def world(folder: Path, users: int) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        sql = stack.enter_context(mariadb(folder / "database"))
        broker = stack.enter_context(redis_server(folder / "broker"))
        inbox, outbox = folder / "inbox", folder / "outbox"
        inbox.mkdir()
        shared = {
            "CONFIG": str(declare(folder)),
            "DATABASE__URL": sql.create_schema("silkrec"),
            "REDIS__URL": broker.url,
            "BROKER__URL": f"{broker.url.rsplit('/', 1)[0]}/1",
            "ARTIFACTS__URL": f"file://{folder / 'artifacts'}",
            "JOBS__INPUT_DIR": str(inbox),
            "JOBS__OUTPUT_DIR": str(outbox),
        }
        grpc = [free_port(), free_port()]
        doors = [{**shared, "INFERENCE__GRPC_PORT": str(port)} for port in grpc]
        engines = [
            started(stack, Replica("inference", core, folder, told, core=core)) for core, told in enumerate(doors)
        ]
        targets = [engine.target for engine in engines]
        online = {**shared, "RECOMMENDER__INFERENCE_TARGETS": ",".join(targets)}
        features, recommender = (
            started(stack, Replica(name, 0, folder, online)) for name in ("features", "recommender")
        )
        front = stack.enter_context(
            nginx(
                folder / "nginx",
                recommenders=f"127.0.0.1:{recommender.port}",
                features=f"127.0.0.1:{features.port}",
                inference=", ".join(f"127.0.0.1:{engine.port}" for engine in engines),
                grpc=", ".join(f"127.0.0.1:{port}" for port in grpc),
            )
        )
        assert front.process is not None
        told = {**os.environ, **{f"SILKREC_{name}": value for name, value in online.items()}}
        told["SILKREC_STATE_DIR"] = str(folder / "cli")
        with httpx.Client(base_url=front.url, timeout=20, trust_env=False) as http:
            suite = Suite(folder, told, front.process, http, {})
            fill(suite)
            train_and_promote(suite)
        database = Database(shared["DATABASE__URL"], DatabaseSettings())
        stack.callback(database.close)
        now = datetime.now(UTC).isoformat()
        names = put_users(database, users, 80, EVENTS_EACH)
        (inbox / "all.jsonl").write_text("".join(json.dumps({"user_id": name}) + "\n" for name in names))
        (inbox / "some.jsonl").write_text("".join(json.dumps({"user_id": name}) + "\n" for name in names[::20]))
        settings = load_settings(env={key: text for key, text in told.items() if key.startswith("SILKREC_")}).settings
        yield World(folder, shared, targets, front.grpc, JobDesk(database, settings), len(names), now)


@contextlib.contextmanager
def workers(world: World, arm: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for core in range(1 if arm == "one" else 2):
            target = world.front if arm == "nginx" else world.engines[core]
            told = {**world.settings, "RECOMMENDER__INFERENCE_TARGETS": target}
            started(stack, Replica("jobs", core, world.folder, told, core=core))
        yield


def run_job(world: World, file: str) -> Seen:
    params = {"file": file, "count": COUNT, "at": world.at, "seed": 1}
    job_id = world.desk.submit(read_body({"type": "export", "params": params}), actor="benchmark")[0].job.job_id
    end = time.monotonic() + JOB_LIMIT_S
    while (seen := world.desk.get(job_id)).job.active:
        if time.monotonic() > end:
            raise SystemExit(f"the run is worth nothing: {file} was not done in {JOB_LIMIT_S:g} s")
        time.sleep(LOOK_S)
    if seen.job.state.value != "succeeded":
        raise SystemExit(f"the run is worth nothing: the job {seen.job.state.value}: {seen.job.reason}")
    return seen


def one_arm(world: World, arm: str) -> dict[str, Any]:
    with workers(world, arm):
        run_job(world, "some.jsonl")  # each worker opens its stores at its first chunk
        seen = run_job(world, "all.jsonl")
    found = parquet.read(folder_of(world.desk.settings, seen.job.job_id))
    if found.num_rows != world.users:
        raise SystemExit(f"the run is worth nothing: {found.num_rows} of {world.users} users in the Parquet")
    return {"arm": arm, "users_per_s": round(seen.progress.rate or 0.0, 1), "checksum": seen.job.checksum}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with world(folder, options.users) as made:
        for number in range(options.rounds):
            turned = ARMS[number % 3 :] + ARMS[: number % 3]
            for arm in turned:
                rows.append({"round": number, **one_arm(made, arm)})
                print(json.dumps(rows[-1]), flush=True)
    rate = {arm: statistics.median(row["users_per_s"] for row in rows if row["arm"] == arm) for arm in ARMS}
    measured = {
        **{f"users_per_s_{arm}": rate[arm] for arm in ARMS},
        "two_over_one": round(rate["two"] / rate["one"], 3),
        "nginx_over_two": round(rate["nginx"] / rate["two"], 3),
        "equal": len({row["checksum"] for row in rows}) == 1,
    }
    workload = {"users": options.users, "rounds": options.rounds, "events_each": EVENTS_EACH, "count": COUNT}
    return {"machine": machine(), "workload": workload, "rows": rows, "measured": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="silkrec-workers-") as folder:
        result = run(options, Path(folder))
    table("jobs", result["rows"])
    table("workers", [result["measured"]])
    save(result, options.json)


if __name__ == "__main__":
    main()
