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
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import machine, save
from services.cli.tune.open_loop import Asked, Shape, Tally, load, poisson, requests
from services.inference.client import GrpcInferenceClient
from services.inference.model.config import ModelConfig
from tests.inference_process import inference_process

DEADLINE_S = 0.068
ITEMS, ROWS = 20_000, (20, 200)
MODEL = ModelConfig(vocabulary=ITEMS, actions=(1, 2, 3, 4, 5), d_model=64, n_layers=2, max_history=200)
ROUNDS = 3
ENCODES = 4


def shape(candidates: int) -> Shape:
    """No candidates: encoding."""
    return Shape(ITEMS, MODEL.actions, ROWS, candidates, DEADLINE_S)


def row_of(tally: Tally, workload: str, mode: str, rate: float) -> dict[str, Any]:
    """One mode at one rate, all rounds together."""
    p50, p95, p99 = tally.percentiles()
    return {
        "workload": workload,
        "mode": mode,
        "rate": rate,
        "sent": tally.sent,
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2),
        "goodput": round(tally.goodput, 1),
        "in_time": round(tally.in_time / max(tally.sent, 1), 4),
        "whole": tally.whole,
        "partial": tally.partial,
        "unscored": tally.unscored,
        "failed": tally.failed,
    }


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
    pools = {"rank": requests(1, shape(options.candidates)), "encode": requests(1, shape(0))}
    rows: list[dict[str, Any]] = []
    gc.collect()
    gc.freeze()
    try:
        for workload, pool in pools.items():
            for rate in options.rates:
                rate = rate * (ENCODES if workload == "encode" else 1)
                for mode, tally in (await round_robin(clients, pool, rate, options.seconds)).items():
                    rows.append(row_of(tally, workload, mode, rate))
                    print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    finally:
        for client in clients.values():
            await client.close()
    return rows


async def round_robin(
    clients: dict[str, GrpcInferenceClient], pool: Sequence[Asked], rate: float, seconds: float
) -> dict[str, Tally]:
    tallies = {mode: Tally() for mode in clients}
    for _ in range(ROUNDS):
        arrivals = poisson(rate, seconds / ROUNDS)
        for mode in random.sample(list(clients), len(clients)):
            await load(clients[mode], pool, arrivals, seconds / ROUNDS, tallies[mode], DEADLINE_S)
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
    about = {**machine(), "busy": options.busy}
    workload = {"candidates": options.candidates, "history_rows": ROWS, "deadline_ms": DEADLINE_S * 1e3}
    return {"machine": about, "workload": workload, "rows": rows, "measured": _measured(rows)}


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
    save(result, options.json)


if __name__ == "__main__":
    main()
