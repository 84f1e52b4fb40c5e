"""How long the analysis takes: users and events bulk-loaded into a private MariaDB, then built and read."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pymysql

from services.recommender.experiments.analysis.build import build
from services.recommender.experiments.analysis.results import report
from services.recommender.experiments.definitions import Experiment, Status, Variant
from services.recommender.experiments.metrics import parse
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from services.recommender.experiments.report import Report
from shared.actions import ActionTable
from shared.schema import Schema
from shared.settings.roots import DatabaseSettings
from shared.storage import migrate
from shared.storage.database import Database
from tests.servers import MariaDB, mariadb

EVENTS_A_USER, FAR_EVENTS = 10, 100_000_000
FIRST_DAY, PRE_DAYS = 20_700, 7
DAY_US = 86_400_000_000
ITEMS, PART = 20_000, 1_000_000
ACTIONS = ActionTable.from_schema(Schema())
CODE = {action.name: action.code for action in ACTIONS}
KINDS = ("impression", "click", "watch", "purchase")
SHARES = (0.60, 0.20, 0.17, 0.03)
PATIENT = DatabaseSettings(statement_timeout_s=3_600)


def registered() -> RegisteredExperiment:
    definition = Experiment(
        key="bench", variants=(Variant("control", 0.5), Variant("treatment", 0.5)), status=Status.RUNNING
    )
    plan = Plan(primary="ctr", secondary=("conversion", "revenue_per_unit"), guardrails={"watch_time_per_unit": 0.02})
    return RegisteredExperiment(definition=definition, owner="", hypothesis="", plan=plan, segment_by="country")


def load(server: MariaDB, folder: Path, users: int, days: int) -> None:
    """Exposures over the days, a quarter of the events in the week before (the covariate), a slate a user. Events come
    in the order of their times, as a shop writes them."""
    dice = np.random.default_rng(3)
    first = FIRST_DAY * DAY_US + np.sort(dice.integers(0, days * DAY_US, users))
    name = pa.array([f"u:user-{number:07d}" for number in dice.permutation(users)])
    variant = np.array(["control", "treatment"])[dice.integers(0, 2, users)]
    segment = np.array(["de", "fr", "us", ""])[dice.integers(0, 4, users)]
    exposed = {
        "experiment": "bench", "phase": 0, "unit": name, "variant": variant, "first_at_us": first,
        "first_day": first // DAY_US, "segment": segment, "simulated": 1,
    }  # fmt: skip
    slates = {
        "experiment": "bench", "recommendation_id": numbered("r", 0, users), "phase": 0,
        "variant": variant, "unit": name, "served_at_us": first, "served_day": first // DAY_US,
        "took_us": dice.lognormal(9.8, 0.4, users).astype(np.int64), "items": 10, "rung": "model", "degraded": 0,
        "failed": 0, "ild": dice.random(users), "novelty": dice.random(users) * 10,
    }  # fmt: skip
    with indexed_afterwards(server, "exposures"):
        load_table(server, folder, "exposures", exposed, users)
    with indexed_afterwards(server, "experiment_slates"):
        load_table(server, folder, "experiment_slates", slates, users)
    with indexed_afterwards(server, "events"):
        load_events(server, folder, dice, name, first, (FIRST_DAY + days) * DAY_US)


def load_events(server: MariaDB, folder: Path, dice: np.random.Generator, name: Any, first: Any, until: int) -> None:
    """`name`, `first` [users]: their keys and first exposures."""
    users = len(first)
    total = users * EVENTS_A_USER
    who = dice.integers(0, users, total, dtype=np.int32)
    week = (FIRST_DAY - PRE_DAYS) * DAY_US + dice.random(total) * PRE_DAYS * DAY_US
    at = np.where(dice.random(total) < 0.25, week, first[who] + dice.random(total) * (until - first[who]))
    order = np.argsort(at)
    who, at = who[order], at[order].astype(np.int64)
    for start in range(0, total, PART):
        part = slice(start, min(start + PART, total))
        size = part.stop - start
        kind = dice.choice(len(KINDS), size, p=SHARES)
        valued = dice.gamma(2.0, 20.0, size) * (kind >= 2)
        rows = {
            "event_id": numbered("e", start, size), "occurred_day": at[part] // DAY_US,
            "user_key": name.take(who[part]), "item_index": dice.integers(1, ITEMS, size),
            "action": np.array([CODE[one] for one in KINDS])[kind], "event_value": np.round(valued, 2),
            "occurred_at_us": at[part], "received_at_us": at[part],
        }  # fmt: skip
        load_table(server, folder, "events", rows, size)


def numbered(letter: str, start: int, size: int) -> Any:
    numbers = pa.array(np.arange(start, start + size)).cast(pa.string())
    return pc.binary_join_element_wise(letter, numbers, "")


@contextmanager
def indexed_afterwards(server: MariaDB, table: str) -> Iterator[None]:
    """Secondary indexes are made once the rows are there: a million events take 12 s instead of 21."""
    described = (
        "SELECT index_name, non_unique, GROUP_CONCAT(column_name ORDER BY seq_in_index)"
        " FROM information_schema.statistics WHERE table_schema = 'bench' AND table_name = %s"
        " AND index_name <> 'PRIMARY' GROUP BY index_name, non_unique"
    )
    with connected(server) as connection, connection.cursor() as cursor:
        cursor.execute(described, (table,))
        indexes = cursor.fetchall()
        cursor.execute(f"ALTER TABLE {table} {', '.join(f'DROP INDEX {one}' for one, _, _ in indexes)}")
        yield
        made = [f"ADD {'' if other else 'UNIQUE '}INDEX {one} ({columns})" for one, other, columns in indexes]
        cursor.execute(f"ALTER TABLE {table} {', '.join(made)}")


def connected(server: MariaDB) -> pymysql.Connection:
    return pymysql.connect(
        host="127.0.0.1", port=server.port, user="silkrec", password="silkrec", database="bench", local_infile=True,
        autocommit=True,
    )  # fmt: skip


def load_table(server: MariaDB, folder: Path, table: str, columns: dict[str, Any], size: int) -> None:
    path = folder / "part.csv"
    arrays = {
        name: one if isinstance(one, np.ndarray | pa.Array) else np.full(size, one) for name, one in columns.items()
    }
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    pa_csv.write_csv(pa.table(arrays), path, options)
    names = ", ".join(f"`{name}`" for name in columns)
    with connected(server) as connection, connection.cursor() as cursor:
        cursor.execute("SET unique_checks = 0")
        cursor.execute(f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE {table} FIELDS TERMINATED BY ',' ({names})")


def analysed(server: MariaDB, url: str, users: int, days: int) -> dict[str, Any]:
    database = Database(url, PATIENT)
    now_us, known = (FIRST_DAY + days) * DAY_US - 1, parse([])
    done = build(database, registered(), now_us, known=known, actions=ACTIONS)
    daily = build(database, registered(), now_us, known=known, actions=ACTIONS)
    database.close()
    server.stop()
    server.start()
    database = Database(url, PATIENT)
    took = []
    found: Report | None = None
    for _ in range(6):
        began = time.perf_counter()
        found = report(database, registered(), now_us, known=known, actions=ACTIONS)
        took.append(time.perf_counter() - began)
    database.close()
    if found is None or sum(one.units for one in found.variants) != users:
        raise SystemExit("the report counts other units than were loaded")
    return {
        "users": users, "events": users * EVENTS_A_USER, "days": len(done.days), "aggregate_build_s": done.seconds,
        "trailing_days": len(daily.days), "daily_build_s": daily.seconds, "results_cold_s": took[0],
        "results_warm_s": max(took[1:]),
    }  # fmt: skip


def measure(users: int, days: int, buffer_pool_mb: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows = []
    for size in (users // 20, users // 4, users):
        # Sockets of MariaDB want a short path.
        with tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name, mariadb(Path(name) / "mariadb") as server:
            server.stop()
            server.command = [
                *(part for part in server.command if not part.startswith("--innodb-buffer-pool-size")),
                f"--innodb-buffer-pool-size={buffer_pool_mb}M", "--innodb-flush-log-at-trx-commit=2",
                "--innodb-log-file-size=1G", "--innodb-sort-buffer-size=64M", "--local-infile=1",
            ]  # fmt: skip
            server.start()
            url = server.create_schema("bench")
            database = Database(url, PATIENT)
            migrate.upgrade(database)
            database.close()
            began = time.perf_counter()
            load(server, Path(name), size, days)
            loaded_s = time.perf_counter() - began
            rows.append({**analysed(server, url, size, days), "loaded_s": loaded_s})
        print(
            "  ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in rows[-1].items()
            )
        )
    growth = [
        math.log(large["aggregate_build_s"] / small["aggregate_build_s"]) / math.log(large["users"] / small["users"])
        for small, large in pairwise(rows)
    ]
    names = ("aggregate_build_s", "daily_build_s", "results_cold_s", "results_warm_s")
    last = rows[-1]
    far = last["aggregate_build_s"] * (FAR_EVENTS / last["events"]) ** max(growth[-1], 1.0)
    print(f"build grows with events to the power of {', '.join(f'{one:.2f}' for one in growth)}")
    print(f"a build of {FAR_EVENTS:,} events would take {far:.0f} s, if that goes on")
    return rows, {name: last[name] for name in names} | {
        "build_events_per_s": last["events"] / last["aggregate_build_s"], "build_growth": growth[-1],
        "extrapolated_100m_build_s": far,
    }  # fmt: skip
