"""What our engine does when three times as much comes as it can answer.

    python -m benchmarks.overload [--seconds 6] [--rounds 4] [--engines 1]
                                  [--workload cold|returning] [--json FILE]

`silkrec serve inference` as a process of its own with the demo's ranker and one torch thread; this process sends a
workload of `benchmarks/peers/workload.py` (history 200 +- 40, 128 candidates), Poisson arrivals, open loop, deadline
68 ms. By default no user returns, so that a request costs the same at every rate: among returning ones, those who were
refused last time are not cached, and an overload makes the work itself 40 % more expensive (3.2 to 4.5 ms a request).
Goodput is answers a second that have every candidate scored and are back within 68 ms of when they were due.

First the rate rises by a quarter from `--start` until goodput falls: the rate with the best goodput is the capacity.
Then trials at that rate and at three times it take turns, so that a slow minute of the machine falls on both. measured:
`overload_goodput_share`, goodput at three times the capacity over goodput at it; `latest_answer_ms_after_deadline`, of
all callers at three times the capacity, those who were refused included, counted from their call; `rss_growth_mb` of
the server between the end of the first round and of the last. About 2 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.clients import SilkrecAsker
from benchmarks.peers.load import Length, Trial
from benchmarks.peers.search import once
from benchmarks.peers.servers import Server, server
from benchmarks.peers.workload import CANDIDATES, DEADLINE_S, ROWS_MEAN, ROWS_SPREAD
from benchmarks.report import machine, save, table
from shared.contracts.inference import RankRequest
from shared.errors import SilkrecError

TIMES = 3.0
CACHE_MB = 64
"""About 500 users: full within the first trials, so that memory that still grows is a leak."""
_UP, _FALLEN, _STEPS = 1.25, 0.85, 16


class CountingAsker(SilkrecAsker):
    """Keeps what became of the requests: whole, partial, unscored, or the name of the error."""

    def __init__(self, targets: Sequence[str], outcomes: Counter[str]) -> None:
        super().__init__(targets)
        self._outcomes = outcomes

    async def ask(self, prepared: RankRequest) -> bool:
        try:
            scored = (await self._client.rank(prepared)).scored
        except SilkrecError as error:
            self._outcomes[type(error).__name__] += 1
            return False
        self._outcomes["whole" if scored.all() else "partial" if scored.any() else "unscored"] += 1
        return bool(scored.all())


def run(options: argparse.Namespace) -> dict[str, Any]:
    about = machine()
    print(f"machine: {about}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name,
        server("silkrec", {"engines": options.engines, "cache__device_mb": CACHE_MB}, Path(name), Path()) as running,
    ):
        rows = ladder(running, options)
        capacity = max(rows, key=lambda row: float(row["goodput"]))["rate"]
        turns, sizes = take_turns(running, capacity, options)
    rows += turns
    table("goodput by rate", rows)
    at = {load: [row for row in turns if row["load"] == load] for load in ("capacity", "overload")}
    peak, over = (statistics.fmean(row["goodput"] for row in at[load]) for load in ("capacity", "overload"))
    measured = {
        "capacity": capacity,
        "peak_goodput": round(peak, 1),
        "overload_goodput": round(over, 1),
        "overload_goodput_share": round(over / peak, 3) if peak else 0.0,
        "latest_answer_ms_after_deadline": round(max(row["latest_ms"] for row in at["overload"]) - DEADLINE_S * 1e3, 2),
        "rss_growth_mb": round(sizes[-1] - sizes[0], 1),
    }
    workload = {
        "users": options.workload,
        "rows": [ROWS_MEAN, ROWS_SPREAD],
        "candidates": CANDIDATES,
        "deadline_ms": DEADLINE_S * 1e3,
        "times_capacity": TIMES,
        "engines": options.engines,
    }
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def ladder(running: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rising rates until goodput has fallen well below its best."""
    rows: list[dict[str, Any]] = []
    for step in range(_STEPS):
        rows.append(_measure(running, options.workload, options.start * _UP**step, step, options.seconds, "rising"))
        if rows[-1]["goodput"] < _FALLEN * max(row["goodput"] for row in rows):
            break
        if rows[-1]["good_share"] < _FALLEN / TIMES * 2:
            break
    return rows


def take_turns(
    running: Server, capacity: float, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows, and the server's memory after each round."""
    rows, sizes = [], []
    for number in range(options.rounds):
        for load, times in (("capacity", 1.0), ("overload", TIMES)):
            rows.append(_measure(running, options.workload, capacity * times, 100 + number, options.seconds, load))
        sizes.append(running.rss_mb())
    return rows, sizes


def _measure(running: Server, workload: str, rate: float, seed: int, seconds: float, load: str) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    asked = Server(running.kind, running.settings, lambda: CountingAsker(running.targets, outcomes), running.roots)
    found = once(asked, workload, seed, rate, Length(seconds, 300), to_the_end=True)
    row = _row(found, load) | {"outcomes": " ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))}
    row["rss_mb"] = round(running.rss_mb(), 1)
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def _row(found: Trial, load: str) -> dict[str, Any]:
    p50, p95, p99 = found.percentiles()
    return {
        "load": load,
        "rate": round(found.rate, 1),
        "goodput": round(found.goodput, 1),
        "good_share": round(found.good / max(found.counted, 1), 4),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2),
        "latest_ms": round(found.latest_ms, 2),
        "foreign_cores": round(found.foreign, 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="a trial")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workload", choices=("cold", "returning"), default="cold")
    parser.add_argument("--start", type=float, default=80.0, help="the lowest rate, requests a second")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
