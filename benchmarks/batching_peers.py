"""Our engine beside LitServe, BentoML and PyTriton: the same model, the same requests, one machine, one run.

    python -m benchmarks.batching_peers [--quick] [--minutes 13.5] [--settings FILE] [--json FILE]

The demo's ranker (d 64, 2 layers, dense) in fp32 with random weights, one torch thread a worker. A request is a
history of 200 +- 40 rows and 128 candidates, Poisson arrivals from this process, open loop, deadline 68 ms. Ours:
`silkrec serve inference` behind its gRPC Unix socket, asked by our client. The peers (a virtual environment of their
own under var/, made at the first use) run our own serving pass with its cache off, each through the transport it is
best at: LitServe raw bytes over HTTP, BentoML base64 in JSON (what its batched endpoints take), PyTriton gRPC.

**Goodput**, the same rule for all (`benchmarks/peers/search.py`): the highest offered rate, in requests a second, at
which at least 99 % of the requests of an open-loop trial (4 s and 500 requests at least, after 1 s of warm-up) came
back with every candidate scored within 68 ms of the moment they were due; a request that was shed, trimmed, refused or
lost counts against it. A rate fails after two trials that did not pass (while other programs
took much of the machine a failure is not counted, three times a rate); the search ends when the passed and the failed
rate are less than 10 % apart. All begin at the same rate, the middle of what the sweeps found. A search that the time
did not suffice for is told in `workload.unfinished` and gives no goodput, and its workload no ratio: more `--minutes`.

First each server's settings are swept (`benchmarks/peers/sweep.py`), ours too; then all are measured at their best, in
rounds: one trial a server, in a new order each time, on the same requests and the same arrivals (scaled to its rate),
the others paused meanwhile. `returning`: 70 % of the requests come from users seen before, their history what they sent
before plus 0 to 3 events; 256 users are seen before a trial begins (sent to ours beforehand; a peer keeps nothing of
them). `cold`: every request is another user's.

measured: `goodput_ratio_{returning,cold}` ours over the best peer's; `goodput_{server}_{workload}`;
`solo_overhead_ms` (see `benchmarks/peers/solo.py`) and `solo_overhead_ms_{peer}`; `compute_ratio_{returning,cold}`, the
peers' forward over ours, without any server. `foreign_cores` of a row: what other programs took of the machine
meanwhile; goodputs say little unless it is near 0. `--settings` takes the sweep from an earlier result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import environment
from benchmarks.peers.compute import compute
from benchmarks.peers.search import FULL, QUICK, Search, find
from benchmarks.peers.servers import PEERS, Server, Settings, server
from benchmarks.peers.solo import solo
from benchmarks.peers.sweep import START, Best, sweep
from benchmarks.peers.workload import (
    CANDIDATES,
    DEADLINE_S,
    MODEL,
    RETURNING_SHARE,
    ROWS_MEAN,
    ROWS_SPREAD,
    WORKLOADS,
)
from benchmarks.report import machine, save, table
from shared.contracts.manifest import ModelManifest
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import publish

OURS = "silkrec"
GUESS = 250.0
SWEEP_SHARE = 0.35
"""Of the whole time; each server gets as much as the next."""
Left = dict[str, str]
"""Servers that do not run here, and why."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    random.seed(1)
    begin = time.monotonic()
    about = {**machine(), "peers": environment.versions()}
    print(f"machine: {about}", flush=True)
    end = time.monotonic() + options.minutes * 60.0
    left: Left = {}
    unfinished: list[str] = []
    with tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name:
        root = Path(name)
        model = published(root / "artifacts")
        rows, measured = compute(model)
        table("forward alone, ms a request", rows)
        best = chosen(options, model, left)
        rows += [{"part": "sweep", **one} for swept in best.values() for one in swept.tried]
        with contextlib.ExitStack() as stack:
            running = started(stack, {kind: swept.settings for kind, swept in best.items()}, root, model, left)
            alone = solo(running, model, root)
            table("one request at a time", alone)
            rows += alone
            for row in alone:
                suffix = "" if row["server"] == OURS else f"_{row['server']}"
                measured[f"solo_overhead_ms{suffix}"] = row["overhead_ms"]
            for number, workload in enumerate(WORKLOADS):
                now = time.monotonic()
                until = now + (end - now) / (len(WORKLOADS) - number)
                searches = [Search(QUICK if options.quick else FULL, _guess(best)) for _ in running]
                find(running, searches, workload, 100, until)
                found = [_row(one, search, workload) for one, search in zip(running, searches, strict=True)]
                hidden = ("trials", "settings")
                table(f"goodput, {workload}", [{k: v for k, v in row.items() if k not in hidden} for row in found])
                rows += found
                measured |= _goodputs(found, workload)
                unfinished += [f"{row['server']} {workload}" for row in found if not row["is_done"]]
    told = {
        "rows": [ROWS_MEAN, ROWS_SPREAD],
        "candidates": CANDIDATES,
        "deadline_ms": DEADLINE_S * 1e3,
        "returning_share": RETURNING_SHARE,
        "model": MODEL.to_dict(),
        "settings": {kind: swept.settings for kind, swept in best.items()},
        "not_run": left,
        "unfinished": unfinished,
        "seconds": round(time.monotonic() - begin),
    }
    about["load_after"] = machine()["load"]
    return {"machine": about, "workload": told, "rows": rows, "measured": measured}


def published(artifacts: Path) -> Path:
    """The folder of a random model of the demo's shape."""
    store = ArtifactStore(artifacts)
    publish(store, "m-1", MODEL)
    return store.open_folder(ModelManifest, "m-1")[0]


def chosen(options: argparse.Namespace, model: Path, left: Left) -> dict[str, Best]:
    if options.settings is not None:
        told = json.loads(options.settings.read_text("utf-8"))["workload"]["settings"]
        return {kind: Best(told[kind], GUESS, []) for kind in options.servers if kind in told}
    if options.quick:
        return {kind: Best(START[kind], GUESS, []) for kind in options.servers}
    found = {}
    share_s = options.minutes * 60.0 * SWEEP_SHARE / len(options.servers)
    for kind in options.servers:
        try:
            found[kind] = sweep(kind, model, GUESS, time.monotonic() + share_s)
        except RuntimeError as error:
            left[kind] = str(error)
            print(f"{kind} does not run here: {error}", flush=True)
    return found


def started(
    stack: contextlib.ExitStack, settings: dict[str, Settings], root: Path, model: Path, left: Left
) -> list[Server]:
    running = []
    for kind, chosen_settings in settings.items():
        try:
            running.append(stack.enter_context(server(kind, chosen_settings, root / kind, model)))
        except RuntimeError as error:
            left[kind] = str(error)
            print(f"{kind} does not run here: {error}", flush=True)
    return running


def _guess(best: dict[str, Best]) -> float:
    return statistics.median(swept.goodput or GUESS for swept in best.values())


def _goodputs(rows: Sequence[dict[str, Any]], workload: str) -> dict[str, float]:
    found = {row["server"]: row["goodput"] for row in rows if row["is_done"]}
    measured = {f"goodput_{kind}_{workload}": value for kind, value in found.items()}
    peers = max((value for kind, value in found.items() if kind != OURS), default=0.0)
    if len(found) == len(rows) and OURS in found and peers > 0:
        measured[f"goodput_ratio_{workload}"] = round(found[OURS] / peers, 3)
    return measured


def _row(one: Server, search: Search, workload: str) -> dict[str, Any]:
    trial = search.passed
    p50, p95, p99 = trial.percentiles() if trial else (float("nan"),) * 3
    return {
        "part": "goodput",
        "server": one.kind,
        "workload": workload,
        "goodput": round(search.goodput, 1),
        "failed_at": None if math.isinf(search.failed) else round(search.failed, 1),
        "answered": round(trial.goodput, 1) if trial else 0.0,
        "p50_ms": _ms(p50),
        "p95_ms": _ms(p95),
        "p99_ms": _ms(p99),
        "foreign_cores": round(statistics.fmean(t.foreign for t in search.trials), 2) if search.trials else None,
        "is_done": search.is_done,
        "settings": one.settings,
        # A whole answer that is not good came late; what is not whole was shed, trimmed or refused.
        "trials": [
            {
                "rate": round(t.rate, 1),
                "sent": t.counted,
                "whole": len(t.ms),
                "good": t.good,
                "passed": t.passed,
                "foreign_cores": round(t.foreign, 2),
            }
            for t in search.trials
        ],
    }


def _ms(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=[OURS, *PEERS], choices=[OURS, *PEERS])
    parser.add_argument("--settings", type=Path, help="an earlier result, whose sweep is taken over")
    parser.add_argument("--minutes", type=float, default=13.5, help="of the whole run; searches end in time")
    parser.add_argument("--quick", action="store_true", help="no sweep, short trials: to see that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    # Told to stop, it wakes and stops its servers: a paused one would not hear that its parent is gone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
