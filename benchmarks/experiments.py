"""What the experiments show: how often their tests err, and how long their analysis takes.

    python benchmarks/experiments.py [--runs 10000] [--users 2000000] [--days 14] [--only errors|time|assignment]
        [--json FILE]

errors       10,000 and more simulated runs (`experiments_simulation`).
time         `--users` users and ten events each in a private MariaDB, bulk-loaded; then a build of every day from
             nothing (`aggregate_build_s`), the report after a restart of the server (`results_cold_s`) and again
             (`results_warm_s`).
             A twentieth and a quarter of the users are built first, so that the growth is measured too
             (`build_growth`: the exponent from a quarter to all).
assignment   µs a call of `enrolment`'s hash and choice, for an id never seen before; with `time` too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments_simulation import measure as measure_errors
from benchmarks.experiments_time import measure as measure_time
from benchmarks.report import machine, save
from services.recommender.experiments.assignment import bucket_ranges, choose_variant, hash_unit


def assignment_us(calls: int = 200_000) -> float:
    ranges = bucket_ranges(1.0, [0.25, 0.25, 0.5])
    ids = [f"user-{number}" for number in range(calls)]
    began = time.perf_counter()
    for one in ids:
        choose_variant(hash_unit("home-diversity", one, 2) or 0.0, ranges)
    took = (time.perf_counter() - began) / calls * 1e6
    print(f"assignment {took:.2f} µs a call")
    return took


def run(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    if options.only in (None, "errors"):
        found, numbers = measure_errors(options.runs)
        rows, measured = rows + found, measured | numbers
    if options.only != "errors":
        measured["assignment_us"] = assignment_us()
    if options.only in (None, "time"):
        found, numbers = measure_time(options.users, options.days, options.buffer_pool_mb)
        rows, measured = rows + found, measured | numbers
    about = machine()
    workload = {"runs": options.runs, "users": options.users, "events": options.users * 10, "days": options.days}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--buffer-pool-mb", type=int, default=2_048)
    parser.add_argument("--only", choices=("errors", "time", "assignment"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    save(result, options.json)


if __name__ == "__main__":
    main()
