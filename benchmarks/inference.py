"""What the model costs through the inference door, and what dynamic batching is worth.

    python -m benchmarks.inference [--seconds 9] [--rates 25 50 100 150] [--json FILE]

`silkrec serve inference` runs as processes of its own, one a mode, with the same random model (d 64, 2 layers, dense).
This process sends Poisson arrivals over gRPC on the Unix socket, open loop: a latency counts from the moment a request
was due. Histories of 20 to 200 rows, deadline 68 ms. Two workloads: `rank` 500 candidates, and `encode` at four times
the rate. Modes take turns within each rate with the same arrivals, in a new order each round, so that a slow minute of
the machine falls on all. `goodput`: answers a second within 68 ms with every candidate scored; `in_time`: share of
requests answered within 68 ms with at least one. Both count what never came as lost.

`--threads 1 2`: a mode each besides. `--busy 1`: so many processes burn a core meanwhile, as the suite's others would.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from services.inference.client import GrpcInferenceClient
from services.inference.model.config import ModelConfig
from shared.contracts.history import pack
from shared.contracts.inference import EncodeRequest, RankRequest
from shared.errors import SilkrecError
from tests.inference_process import inference_process

DEADLINE_S = 0.068
ITEMS, ROWS, POOL = 20_000, (20, 200), 512
MODEL = ModelConfig(vocabulary=ITEMS, actions=(1, 2, 3, 4, 5), d_model=64, n_layers=2, max_history=200)
WARM_UP_S = 1.0
ROUNDS = 3
ENCODES = 4


@dataclass
class Tally:
    """One mode at one rate, all rounds together. `ms`: latencies of answers with at least one score."""

    seconds: float = 0.0
    sent: int = 0
    whole: int = 0
    partial: int = 0
    unscored: int = 0
    failed: int = 0
    good: int = 0
    in_time: int = 0
    ms: list[float] = field(default_factory=list)

    def row(self, workload: str, mode: str, rate: float) -> dict[str, Any]:
        p50, p95, p99 = np.percentile(self.ms, [50, 95, 99]) if self.ms else (float("nan"),) * 3
        return {
            "workload": workload,
            "mode": mode,
            "rate": rate,
            "sent": self.sent,
            "p50_ms": round(float(p50), 2),
            "p95_ms": round(float(p95), 2),
            "p99_ms": round(float(p99), 2),
            "goodput": round(self.good / self.seconds, 1),
            "in_time": round(self.in_time / max(self.sent, 1), 4),
            "whole": self.whole,
            "partial": self.partial,
            "unscored": self.unscored,
            "failed": self.failed,
        }


def requests(seed: int, candidates: int) -> list[RankRequest | EncodeRequest]:
    """A pool made beforehand: making one costs as much as sending it. No candidates: encoding."""
    numbers = np.random.default_rng(seed)
    made: list[RankRequest | EncodeRequest] = []
    for user in range(POOL):
        rows = int(numbers.integers(*ROWS, endpoint=True))
        times = 1_700_000_000 + np.cumsum(numbers.integers(1, 50_000, rows))
        history = pack(numbers.integers(0, ITEMS, rows), numbers.integers(1, 6, rows), times)
        deadline_us = int(DEADLINE_S * 1e6)
        if candidates:
            candidate = numbers.integers(0, ITEMS, candidates, dtype=np.int32)
            made.append(RankRequest(f"u:{user}", history, candidate, int(times[-1]) + 60, deadline_us))
        else:
            made.append(EncodeRequest(f"u:{user}", history, deadline_us))
    return made


async def one(
    client: GrpcInferenceClient, request: RankRequest | EncodeRequest, due: float, tally: Tally | None
) -> None:
    try:
        if isinstance(request, EncodeRequest):
            await client.encode(request)
            scored, wanted = 1, 1
        else:
            result = await client.rank(request)
            scored, wanted = int(result.scored.sum()), len(result.scored)
    except SilkrecError:
        if tally is not None:
            tally.failed += 1
        return
    seconds = time.perf_counter() - due
    if tally is None:
        return
    tally.whole += scored == wanted
    tally.partial += 0 < scored < wanted
    tally.unscored += scored == 0
    tally.good += scored == wanted and seconds <= DEADLINE_S
    tally.in_time += scored > 0 and seconds <= DEADLINE_S
    if scored:
        tally.ms.append(seconds * 1e3)


async def load(
    client: GrpcInferenceClient,
    pool: Sequence[RankRequest | EncodeRequest],
    arrivals: Sequence[float],
    seconds: float,
    tally: Tally,
) -> None:
    """`arrivals` in seconds from now; what comes in the first WARM_UP_S is not counted."""
    begin = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for number, after in enumerate(arrivals):
        await asyncio.sleep(max(0.0, begin + after - time.perf_counter()))
        counts = after >= WARM_UP_S
        tally.sent += counts
        asked = one(client, pool[number % len(pool)], begin + after, tally if counts else None)
        task = asyncio.create_task(asked)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    tally.seconds += seconds
    await asyncio.gather(*tasks)


def poisson(rate: float, seconds: float) -> list[float]:
    """Arrival times until `seconds` after the warm-up."""
    count = int(2 * rate * (WARM_UP_S + seconds)) + 50
    times = np.cumsum(np.random.default_rng(random.getrandbits(32)).exponential(1 / rate, count))
    return [float(at) for at in times[times < WARM_UP_S + seconds]]


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


async def compare(targets: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    clients = {mode: GrpcInferenceClient([target]) for mode, target in targets.items()}
    pools = {"rank": requests(1, options.candidates), "encode": requests(1, 0)}
    rows: list[dict[str, Any]] = []
    gc.collect()
    gc.freeze()
    try:
        for workload, pool in pools.items():
            for rate in options.rates:
                rate = rate * (ENCODES if workload == "encode" else 1)
                for mode, tally in (await round_robin(clients, pool, rate, options.seconds)).items():
                    rows.append(tally.row(workload, mode, rate))
                    print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    finally:
        for client in clients.values():
            await client.close()
    return rows


async def round_robin(
    clients: dict[str, GrpcInferenceClient], pool: Sequence[RankRequest | EncodeRequest], rate: float, seconds: float
) -> dict[str, Tally]:
    tallies = {mode: Tally() for mode in clients}
    for _ in range(ROUNDS):
        arrivals = poisson(rate, seconds / ROUNDS)
        for mode in random.sample(list(clients), len(clients)):
            await load(clients[mode], pool, arrivals, seconds / ROUNDS, tallies[mode])
    return tallies


def run(options: argparse.Namespace) -> dict[str, Any]:
    modes: dict[str, dict[str, str]] = {"batching": {}, "no_batching": {"dynamic_batching__enabled": "false"}}
    modes |= {f"threads_{threads}": {"threads": str(threads)} for threads in options.threads}
    random.seed(1)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="silkrec-bench-")))
        targets = {
            mode: stack.enter_context(inference_process(root / mode, config=MODEL, settings=settings)).target
            for mode, settings in modes.items()
        }
        stack.enter_context(burning(options.busy))
        rows = asyncio.run(compare(targets, options))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "busy": options.busy}
    workload = {"candidates": options.candidates, "history_rows": ROWS, "deadline_ms": DEADLINE_S * 1e3}
    return {"machine": machine, "workload": workload, "rows": rows, "measured": _measured(rows)}


def _measured(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    measured = {
        f"inference_{row['workload']}_{row['mode']}_{row['rate']:g}_{name}": row[name]
        for row in rows
        for name in ("p50_ms", "p95_ms", "p99_ms", "goodput", "in_time")
    }
    for kind in {(row["workload"], row["mode"]) for row in rows}:
        best = max(row["goodput"] for row in rows if (row["workload"], row["mode"]) == kind)
        measured[f"inference_{kind[0]}_{kind[1]}_best_goodput"] = best
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=9.0, help="a row")
    parser.add_argument("--rates", type=float, nargs="+", default=[25, 50, 100, 150], help="rankings a second")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--threads", type=int, nargs="*", default=[])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
