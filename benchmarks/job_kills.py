"""One job while everything that it needs is killed at random: worker, broker, database, engine.

    python -m benchmarks.job_kills [--users 50000] [--kills 30] [--events 6] [--seed 1] [--broker redis|rabbitmq]
                                   [--json FILE]

`silkrec serve all` over a private MariaDB and a broker of its own, with a small trained model and users who have a few
events each. First a job of a tenth of the users runs undisturbed: its users a second are the rate. Then the job: kills
(SIGKILL) come at random places of its progress, each part in turn in a random order; nothing but the killed part is
started again, database and broker by this script as an init system would, the others by their supervisor.

measured: `missing_users` and `duplicate_users` of the published Parquet against who was asked for; `checksum_matches`,
that it is what the chunks committed; `kill_slowdown`, seconds of the job over users / rate, without the seconds in
which a killed part was not yet ready again (database and broker: answer; engine: /ready; worker: its master says so);
`longest_queue` of the broker, in messages; `worker_mb` of the process that makes slates, at a tenth of the job and at
its end, which says something with `--kills 0`: `--users 1000000 --events 0 --kills 0` is the trial of a very large job.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from kombu import Queue
from sqlalchemy import Connection, insert

from benchmarks.report import machine, save, table
from services.recommender.jobs.broker import QUEUE, make_app
from services.recommender.jobs.desk import JobDesk, Seen
from services.recommender.jobs.outputs import parquet
from services.recommender.jobs.outputs.made import checksum_of
from services.recommender.jobs.spec import read_body
from services.recommender.jobs.working import folder_of
from shared.errors import DatabaseUnavailable
from shared.settings.load import load_settings
from shared.settings.roots import DatabaseSettings, Settings
from shared.storage.database import Database
from shared.storage.tables import events, user_state
from tests.e2e.suite import Suite, fill, serve_all, train_and_promote
from tests.servers import Process, mariadb, rabbitmq, redis_server

PARTS = ("worker", "broker", "database", "engine")
READY_S = 180.0
LOOK_S = 0.1
SAMPLE_S = 2.0
BATCH = 5000


@dataclass
class Trial:
    suite: Suite
    database: Process
    broker: Process
    desk: JobDesk
    queue: Callable[[], int | None]
    kills: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[float, float, int]] = field(default_factory=list)

    def sample(self, share: float) -> None:
        """Share of the users done, megabytes of the largest worker process, messages that wait; none where a part is
        away just now."""
        waiting = self.queue()
        try:
            makers = psutil.Process(self._worker()).children(recursive=True)
            sizes = [maker.memory_info().rss / 1e6 for maker in makers]
        except (psutil.Error, StopIteration, KeyError):
            return
        if sizes and waiting is not None:
            self.samples.append((share, max(sizes), waiting))

    def seen(self, job_id: str) -> Seen | None:
        """None while the database is away."""
        try:
            return self.desk.get(job_id)
        except DatabaseUnavailable:
            return None

    def kill(self, part: str) -> float:
        """Seconds until it was ready again."""
        began = time.monotonic()
        if part in ("database", "broker"):
            process = self.database if part == "database" else self.broker
            process.kill()
            process.start()
        elif part == "engine":
            starts = self.suite.starts("inference")
            self.suite.kill("inference")
            _until(lambda: self.suite.starts("inference") > starts, "the engine is started")
            _until(lambda: self._answers(f"http://127.0.0.1:{self.suite.ports['inference']}/ready"), "it is ready")
        else:
            said = self._ready_lines()
            os.killpg(self._worker(), signal.SIGKILL)
            _until(lambda: self._ready_lines() > said, "the worker is ready")
        return time.monotonic() - began

    def _worker(self) -> int:
        """The Celery master, a child of the jobs process and the head of a session of its own."""
        jobs = psutil.Process(self.suite.running()["jobs"]["pid"])
        return next(child.pid for child in jobs.children() if "worker" in child.cmdline())

    def _ready_lines(self) -> int:
        log = self.suite.folder / "log" / "jobs.log"
        return log.read_text(errors="replace").count(" ready.") if log.exists() else 0

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def run_job(trial: Trial, params: dict[str, Any], plan: list[tuple[float, str]]) -> tuple[Seen, float]:
    """The job as it ended, and how long it took. `plan`: at which share of the users done which part is killed."""
    body = read_body({"type": "export", "params": params})
    job_id = trial.desk.submit(body, actor="benchmark")[0].job.job_id
    began = time.monotonic()
    waiting = list(plan)
    trial.samples.clear()
    sampled = 0.0
    while True:
        seen = trial.seen(job_id)
        if seen is not None and not seen.job.active:
            return seen, time.monotonic() - began
        share = 0.0 if seen is None or not seen.job.planned else seen.progress.done / max(1, seen.progress.total)
        if waiting and seen is not None and share >= waiting[0][0]:
            _, part = waiting.pop(0)
            unready_s = trial.kill(part)
            trial.kills.append({"part": part, "at": round(share, 3), "unready_s": round(unready_s, 2)})
        if time.monotonic() - sampled > SAMPLE_S:
            sampled = time.monotonic()
            trial.sample(share)
        time.sleep(LOOK_S)


def sizes_of(samples: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """The newest sample of the first tenth against the last of all."""
    if not samples:
        return {}
    tenth = next((sample for sample in samples if sample[0] >= 0.1), samples[-1])
    return {
        "longest_queue": max(waiting for _, _, waiting in samples),
        "worker_mb": [round(tenth[1]), round(samples[-1][1])],
    }


def plan_of(kills: int, seed: int) -> list[tuple[float, str]]:
    """Shares rise; every part has its turns, in an order drawn anew."""
    dice = random.Random(seed)
    parts = [PARTS[number % len(PARTS)] for number in range(kills)]
    dice.shuffle(parts)
    return [((number + dice.random()) / (kills + 1), part) for number, part in enumerate(parts)]


def verdict(trial: Trial, seen: Seen, asked: set[str]) -> dict[str, Any]:
    """From what a reader of the Parquet finds."""
    found = parquet.read(folder_of(trial.desk.settings, seen.job.job_id))
    users = Counter(found.column("user_id").to_pylist())
    lists = found.column("item_index").to_pylist()
    total = 0
    for user_id, items in zip(found.column("user_id").to_pylist(), lists, strict=True):
        total += checksum_of(f"u:{user_id}", np.asarray(items, "<i4").tobytes())
    return {
        "missing_users": len(asked - users.keys()),
        "duplicate_users": sum(count - 1 for count in users.values()),
        "unasked_users": len(users.keys() - asked),
        "empty_slates": sum(not items for items in lists),
        "checksum_matches": f"{total % (1 << 256):064x}" == seen.job.checksum,
    }


def put_users(database: Database, count: int, items: int, events_each: int) -> list[str]:
    """With a short history each, straight into the tables: the way in is measured elsewhere."""
    names = [f"kill-{number:06d}" for number in range(count)]
    now_us = time.time_ns() // 1000
    for start in range(0, count, BATCH):
        part = names[start : start + BATCH]

        def write(connection: Connection, part: list[str] = part) -> None:
            dice = random.Random(part[0])
            connection.execute(insert(user_state), [{"user_key": f"u:{name}", "revision": 1} for name in part])
            rows = [
                {
                    "event_id": f"{name}-{place}", "occurred_day": now_us // 86_400_000_000, "user_key": f"u:{name}",
                    "item_index": dice.randint(1, items), "action": 2, "occurred_at_us": now_us - place * 60_000_000,
                    "received_at_us": now_us,
                }
                for name in part for place in range(events_each)
            ]  # fmt: skip
            if rows:
                connection.execute(insert(events), rows)

        database.transact(write)
    return names


@contextmanager
def trial_of(folder: Path, options: argparse.Namespace) -> Iterator[tuple[Trial, list[str]]]:
    with ExitStack() as stack:
        sql = stack.enter_context(mariadb(folder / "database"))
        broker: Any = stack.enter_context((redis_server if options.broker == "redis" else rabbitmq)(folder / "broker"))
        inbox = folder / "inbox"
        inbox.mkdir()
        stores = {"DATABASE__URL": sql.url(), "BROKER__URL": broker.url, "JOBS__INPUT_DIR": str(inbox)}
        suite = stack.enter_context(serve_all(folder / "suite", **stores))
        fill(suite)
        train_and_promote(suite)
        database = Database(sql.url(), DatabaseSettings())
        stack.callback(database.close)
        names = put_users(database, options.users, 80, options.events)
        lines = "".join(json.dumps({"user_id": name}) + "\n" for name in names)
        (inbox / "all.jsonl").write_text(lines)
        (inbox / "some.jsonl").write_text("".join(json.dumps({"user_id": name}) + "\n" for name in names[::10]))
        settings = load_settings(env=_silkrec(suite.environment)).settings
        yield Trial(suite, sql, broker, JobDesk(database, settings), length_of(settings)), names


def length_of(settings: Settings) -> Callable[[], int | None]:
    """Asks the broker how many messages wait; None while it is away."""
    app = make_app(settings)

    def length() -> int | None:
        try:
            with app.connection_for_read(connect_timeout=1) as connection:
                return int(Queue(QUEUE, durable=True)(connection.default_channel).queue_declare().message_count)
        except (OSError, *connection_errors):
            return None

    with app.connection_for_read() as known:
        connection_errors = (*known.connection_errors, *known.channel_errors)
    return length


def _silkrec(environment: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name.startswith("SILKREC_")}


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"the run is worth nothing: not within {READY_S:g} s: {what}")
        time.sleep(LOOK_S)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with trial_of(folder, options) as (trial, names):
        warm, _ = run_job(trial, {"file": "some.jsonl", "count": 10}, [])
        calm, _ = run_job(trial, {"file": "some.jsonl", "count": 10}, [])
        for one in (warm, calm):
            if one.job.state.value != "succeeded":
                raise SystemExit(
                    f"the run is worth nothing: the undisturbed job {one.job.state.value}: {one.job.reason}"
                )
        rate = calm.progress.rate or 0.0  # from its first lease on: waiting for that would flatter the slowdown
        plan = plan_of(options.kills, options.seed)
        seen, took_s = run_job(trial, {"file": "all.jsonl", "count": 10}, plan)
        unready_s = sum(kill["unready_s"] for kill in trial.kills)
        measured = {
            "state": seen.job.state.value, "users": len(names), "kills": len(trial.kills), "seconds": round(took_s, 1),
            "unready_seconds": round(unready_s, 1), "rate_users_s": round(rate, 1),
            "failed_users": seen.progress.failed, **sizes_of(trial.samples),
            "kill_slowdown": round((took_s - unready_s) / (len(names) / rate), 3),
        }  # fmt: skip
        if seen.job.state.value == "succeeded":
            measured |= verdict(trial, seen, set(names))
        else:
            measured["reason"] = seen.job.reason
    workload = {
        "users": options.users,
        "kills": options.kills,
        "events": options.events,
        "seed": options.seed,
        "broker": options.broker,
    }
    return {"machine": machine(), "workload": workload, "rows": trial.kills, "measured": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--events", type=int, default=6, help="a user's history")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="silkrec-kills-") as folder:
        result = run(options, Path(folder))
    table("kills", result["rows"])
    table("job", [result["measured"]])
    save(result, options.json)


if __name__ == "__main__":
    main()
