"""How many events a second `silkrec data import` stores: reading, checking, writing and committing, nothing left out.

    python benchmarks/bulk_import.py [--events 200000] [--databases sqlite,mariadb] [--repeats 3] [--json FILE]

Makes a file of events (20,000 users, 10,000 items, both skewed, five event types, a month of time) as CSV, Parquet and
JSON Lines, and imports each into an empty SQLite file and an empty schema of a private MariaDB, `--repeats` times. The
clock runs over the whole import, from opening the file to its last commit: every user and every item is new to it. A
row counts only if the database then holds all events; a second import of the same file must change nothing, and is
timed too. `events_per_s` is the median of CSV into SQLite.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from sqlalchemy import func, select

from benchmarks.report import machine, save
from services.features.bulk.job import EVENTS_A_BATCH, Wanted, run_import
from shared.settings.load import load_settings
from shared.settings.roots import Settings
from shared.storage import migrate
from shared.storage.database import Database
from shared.storage.tables import events as event_table
from tests.servers import mariadb

USERS, ITEMS = 20_000, 10_000
TYPES = ("click", "view", "impression", "add_to_cart", "purchase")
TYPE_WEIGHTS = (0.40, 0.30, 0.20, 0.07, 0.03)
MAPPED = {"user_id": "uid", "item_id": "sku", "occurred_at": "ts", "event_type": "kind", "event_value": "value"}
FORMATS = ("csv", "parquet", "jsonl")
MONTH_S, START_S = 30 * 86_400, 1_750_000_000


def make_files(folder: Path, count: int) -> None:
    dice = np.random.default_rng(7)

    def skewed(size: int) -> Any:
        weights = 1.0 / np.arange(1, size + 1) ** 0.8
        return dice.choice(size, count, p=weights / weights.sum())

    kinds = dice.choice(len(TYPES), count, p=TYPE_WEIGHTS)
    valued = np.isin(kinds, [1, 4])
    table = pa.table(
        {
            "uid": pa.array([f"user-{n}" for n in skewed(USERS).tolist()]),
            "sku": pa.array([f"SKU{n:06d}" for n in skewed(ITEMS).tolist()]),
            "kind": pa.array([TYPES[n] for n in kinds.tolist()]),
            "value": pa.array(np.round(dice.gamma(2.0, 15.0, count), 2), mask=~valued),
            "ts": pa.array(START_S + np.sort(dice.integers(0, MONTH_S, count))),
        }
    )
    pa_csv.write_csv(table, folder / "events.csv")
    pq.write_table(table, folder / "events.parquet", row_group_size=50_000)
    with (folder / "events.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


@contextlib.contextmanager
def opened(url: str, folder: Path) -> Iterator[tuple[Database, Settings]]:
    config = folder / "silkrec.yaml"
    config.touch()
    settings = load_settings(config, env={}, overrides={"database.url": url}).settings
    database = Database(url, settings.database)
    try:
        migrate.upgrade(database)
        yield database, settings
    finally:
        database.close()


def measure(url: str, folder: Path, path: Path, count: int, batch_rows: int) -> tuple[float, float]:
    """Events a second of the import, and of a second one that finds every event known."""
    rates = []
    with opened(url, folder) as (database, settings):
        for expected in ((count, 0), (0, count)):
            began = time.perf_counter()
            wanted = Wanted(path, mapped=MAPPED, batch_rows=batch_rows, restart=True)
            summary = run_import(database, settings, wanted)
            rates.append(count / (time.perf_counter() - began))
            with database.read() as connection:
                stored = int(connection.scalar(select(func.count()).select_from(event_table)) or 0)
            if (summary.accepted, summary.duplicates) != expected or stored != count:
                raise SystemExit(f"{path.name}: {summary.as_dict()}, and {stored} events are stored")
    return rates[0], rates[1]


def row_of(kind: str, path: Path, rates: list[tuple[float, float]]) -> dict[str, Any]:
    first = sorted(rate for rate, _ in rates)
    again = sorted(rate for _, rate in rates)
    middle = len(rates) // 2
    row = {
        "database": kind, "format": path.suffix[1:], "events_per_s": round(first[middle]),
        "slowest": round(first[0]), "fastest": round(first[-1]), "known_already_per_s": round(again[middle]),
    }  # fmt: skip
    print(
        f"{kind:8} {row['format']:8} {row['events_per_s']:7} events/s ({row['slowest']} to {row['fastest']})   "
        f"second import {row['known_already_per_s']:7} events/s"
    )
    return row


def run(count: int, databases: Sequence[str], repeats: int, batch_rows: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    # Sockets of MariaDB want a short path.
    with tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name, contextlib.ExitStack() as own:
        folder = Path(name)
        make_files(folder, count)
        server = own.enter_context(mariadb(folder / "mariadb")) if "mariadb" in databases else None
        for kind in databases:
            for form in FORMATS:
                path, rates = folder / f"events.{form}", []
                for turn in range(repeats):
                    store = folder / f"{form}-{turn}.db"
                    url = server.create_schema("bench") if kind == "mariadb" and server else f"sqlite:///{store}"
                    rates.append(measure(url, folder, path, count, batch_rows))
                    for leftover in folder.glob(f"{store.name}*"):
                        leftover.unlink()
                rows.append(row_of(kind, path, rates))
    leading = next(row for row in rows if row["database"] == databases[0] and row["format"] == "csv")
    measured = {"events_per_s": leading["events_per_s"]}
    measured |= {f"events_per_s_{row['database']}_{row['format']}": row["events_per_s"] for row in rows}
    about = machine()
    workload = {
        "events": count, "users": USERS, "items": ITEMS, "batch_rows": batch_rows or EVENTS_A_BATCH, "repeats": repeats,
    }  # fmt: skip
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--databases", default="sqlite,mariadb", help="`measured` leads with the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=0, help="0: what the command takes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options.events, options.databases.split(","), options.repeats, options.batch_rows)
    save(result, options.json)


if __name__ == "__main__":
    main()
