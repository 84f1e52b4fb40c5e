"""How many events a second `POST /v1/events` makes durable: HTTP, validation, commit and Redis, nothing left out.

    python benchmarks/ingest.py [--events 60000] [--databases mariadb,sqlite] [--json FILE]

Starts a private MariaDB, a private Redis and `silkrec serve features`, and sends from four connections, each with users
of its own, the next batch when the last one was answered. Before the clock starts every user and item has been seen
once. A row counts only if each event was accepted and the database then holds it; latencies are those of a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select

from benchmarks.report import machine, save
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import events as event_table
from tests.servers import free_port, mariadb, redis_server

USERS, ITEMS, CONNECTIONS = 4000, 10_000, 4
BATCHES = (500, 10)
# Small batches are a tenth of the events: a row should not take minutes.
SMALL_SHARE = 0.1
START_S, TIMEOUT_S = 60.0, 60.0
TYPES = ("click", "view", "impression", "add_to_cart", "purchase")
TYPE_WEIGHTS = (40, 30, 20, 7, 3)


@dataclass(frozen=True)
class Service:
    port: int
    database: Database
    pid: int

    def stored(self) -> int:
        with self.database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(event_table)) or 0)


@contextlib.contextmanager
def serving(database_url: str, redis_url: str, folder: Path) -> Iterator[Service]:
    """`silkrec serve features` in a process of its own, ready."""
    folder.mkdir(parents=True)
    config = folder / "silkrec.yaml"
    config.touch()
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SILKREC_")} | {
        "SILKREC_CONFIG": str(config),
        "SILKREC_STATE_DIR": str(folder / "var"),
        "SILKREC_DATABASE__URL": database_url,
        "SILKREC_REDIS__URL": redis_url,
        "SILKREC_FEATURES__PORT": str(port),
    }
    log = folder / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "services.cli.main", "serve", "features"]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    database = Database(database_url, DatabaseSettings())
    try:
        _wait_ready(port, process, log)
        yield Service(port, database, process.pid)
    finally:
        process.terminate()
        process.wait(30)
        database.close()


def _wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/ready")
            if connection.getresponse().status == http.client.OK:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the features service did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


class Shop:
    """Makes batches. A connection has its own users, as a balancer that hashes users would give it."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._clock = datetime.now(UTC) - timedelta(hours=2)
        self._number = 0
        weights = 1.0 / np.arange(1, ITEMS + 1) ** 0.8
        drawn = np.random.default_rng(seed).choice(ITEMS, 200_000, p=weights / weights.sum())
        self._items: list[int] = drawn.tolist()

    def lanes(self, count: int, batch: int) -> list[list[bytes]]:
        """`count` events in batches, dealt to the connections."""
        each = count // (batch * CONNECTIONS)
        return [[self._batch(lane, batch) for _ in range(each)] for lane in range(CONNECTIONS)]

    def everything(self) -> list[list[bytes]]:
        """Each user and each item at least once."""
        lanes: list[list[bytes]] = [[] for _ in range(CONNECTIONS)]
        for start in range(0, ITEMS, 500):
            lane = (start // 500) % CONNECTIONS
            users = [(start + place) * CONNECTIONS % USERS + lane for place in range(500)]
            rows = [self._event(user, start + place) for place, user in enumerate(users)]
            lanes[lane].append(json.dumps({"events": rows}).encode())
        return lanes

    def _batch(self, lane: int, size: int) -> bytes:
        users = [self._dice.randrange(USERS // CONNECTIONS) * CONNECTIONS + lane for _ in range(size)]
        rows = [self._event(user, self._items[self._dice.randrange(len(self._items))]) for user in users]
        return json.dumps({"events": rows}).encode()

    def _event(self, user: int, item: int) -> dict[str, Any]:
        self._number += 1
        self._clock += timedelta(milliseconds=5)
        kind = self._dice.choices(TYPES, TYPE_WEIGHTS)[0]
        event: dict[str, Any] = {
            "event_id": f"evt-{self._number:012d}",
            "event_type": kind,
            "user_id": f"user-{user}",
            "item_id": f"item-{item}",
            "session_id": f"session-{user}-1",
            "occurred_at": self._clock.isoformat(),
        }
        if kind in ("view", "purchase"):
            event["event_value"] = round(self._dice.uniform(1, 100), 2)
        return event


def send(port: int, bodies: Sequence[bytes], batch: int) -> list[float]:
    """One connection's work; milliseconds a batch. Ends the run at the first answer that is not what it should be."""
    took: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        for body in bodies:
            began = time.perf_counter()
            connection.request("POST", "/v1/events", body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            took.append((time.perf_counter() - began) * 1000)
            answer = json.loads(content)
            if response.status != http.client.ACCEPTED or answer["accepted"] != batch:
                raise SystemExit(f"the run is worth nothing: {response.status} {content[:400]!r}")
    return took


def send_all(port: int, lanes: Sequence[Sequence[bytes]], batch: int) -> tuple[float, list[float]]:
    """Seconds for all of it, and milliseconds of each batch."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        took = [found for one in threads.map(lambda lane: send(port, lane, batch), lanes) for found in one]
    return time.perf_counter() - began, took


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, service: Service, events: int) -> list[dict[str, Any]]:
    shop, rows = Shop(7), []
    send_all(service.port, shop.everything(), 500)
    for batch in BATCHES:
        count = events if batch == max(BATCHES) else round(events * SMALL_SHARE)
        lanes = shop.lanes(count, batch)
        sent = sum(len(lane) for lane in lanes) * batch
        before, cpu = service.stored(), cpu_seconds(service.pid)
        seconds, took = send_all(service.port, lanes, batch)
        cpu = cpu_seconds(service.pid) - cpu
        if service.stored() - before != sent:
            raise SystemExit(f"{kind}: {sent} events were acknowledged, {service.stored() - before} are stored")
        p50, p95, p99 = (round(float(value), 1) for value in np.percentile(took, [50, 95, 99]))
        row = {"database": kind, "batch": batch, "events": sent, "events_per_s": round(sent / seconds)}
        rows.append({**row, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "service_cores": round(cpu / seconds, 2)})
        print(
            f"{kind:8} batches of {batch:3}: {row['events_per_s']:6} events/s   "
            f"p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f} ms a batch   {cpu / seconds:.2f} cores of the service"
        )
    return rows


def run(events: int, databases: Sequence[str]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    # Sockets of MariaDB want a short path.
    with tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name:
        folder = Path(name)
        for kind in databases:
            with contextlib.ExitStack() as own:
                url = f"sqlite:///{folder / 'silkrec.db'}"
                if kind == "mariadb":
                    url = own.enter_context(mariadb(folder / "mariadb")).create_schema("bench")
                # Its own Redis too: histories of another database's users would all count as behind.
                redis = own.enter_context(redis_server(folder / f"redis-{kind}"))
                service = own.enter_context(serving(url, redis.url, folder / f"features-{kind}"))
                rows += measure(kind, service, events)
    first = databases[0]
    measured = {"events_per_s": next(row["events_per_s"] for row in rows if row["database"] == first)}
    measured |= {f"events_per_s_{row['database']}_{row['batch']}": row["events_per_s"] for row in rows}
    about = machine()
    workload = {"users": USERS, "items": ITEMS, "connections": CONNECTIONS, "loop": "closed", "events": events}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000, help="in the row of 500-event batches")
    parser.add_argument("--databases", default="mariadb,sqlite", help="`measured` leads with the first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options.events, options.databases.split(","))
    save(result, options.json)


if __name__ == "__main__":
    main()
