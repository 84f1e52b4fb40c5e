"""Every process restarted in turn, under load, and nobody notices.

    python -m benchmarks.rolling_restart [--rates 50 25 12] [--rounds 1] [--json FILE]

Two replicas of each Python service behind a real nginx on infra/nginx's files, over one private MariaDB and Redis,
with a small trained model. Poisson arrivals of `/v1/recommend` through nginx; latencies count from when a request was
due, by the client's clock. Then SIGTERM and a new start for each process, one after the other once the one before is
ready, and a reload of nginx. `failed_requests`: a 5xx or a connection error; `late_share`: answers later than 68 ms, or
none. A row a step, and one (`steady`) without a restart, which says what the machine itself does.

Whose time it is: `took_p99_ms` is the recommender's own clock, from a request's last byte to its answer;
`idle_p99_ms` is `/nginx-health`, asked five times a second by the same client: what client, nginx and a busy machine
take without us. `cpu_ms`: of each process a request while nothing was restarted, and how many cores that was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.replicas import World, cpu_s, world
from benchmarks.report import machine, save
from services.cli.tune.open_loop import poisson
from tests.e2e.suite import USERS

DEADLINE_S = 0.068
TIMEOUT_S = 5.0
STEADY_S, SETTLE_S = 15.0, 2.0
REPLICAS = 2
IDLE_RATE = 5.0


@dataclass
class Step:
    """What was asked while one process was restarted. `ms`: of answers."""

    name: str
    sent: int = 0
    failed: int = 0
    late: int = 0
    degraded: int = 0
    ms: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)
    why: Counter[str] = field(default_factory=Counter)
    """Of failed requests: the status and the problem's code, or the client's error."""

    def row(self) -> dict[str, Any]:
        (p50, p99), (_, took), (_, idle) = (_percentiles(ms) for ms in (self.ms, self.took_ms, self.idle_ms))
        return {
            "step": self.name,
            "sent": self.sent,
            "failed": self.failed,
            "late": self.late,
            "degraded": self.degraded,
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": round(max(self.ms, default=0.0), 1),
            "took_p99_ms": took,
            "idle_p99_ms": idle,
            "why": dict(self.why),
        }


def _percentiles(ms: Sequence[float]) -> tuple[float, float]:
    """p50 and p99; 0 of nothing, which JSON can hold."""
    p50, p99 = np.percentile(ms, [50, 99]) if ms else (0.0, 0.0)
    return round(float(p50), 1), round(float(p99), 1)


async def ask(http: httpx.AsyncClient, due: float, step: Step) -> None:
    body = {"user_id": f"u{random.randrange(USERS)}", "count": 10}
    step.sent += 1
    try:
        answer = await http.post("/v1/recommend", json=body)
    except httpx.HTTPError as error:
        step.failed += 1
        step.late += 1
        step.why[type(error).__name__] += 1
        return
    seconds = time.perf_counter() - due
    if answer.is_server_error:
        step.failed += 1
        step.why[f"{answer.status_code} {answer.text[:200]}"] += 1
    step.late += seconds > DEADLINE_S
    step.ms.append(seconds * 1e3)
    if answer.status_code == httpx.codes.OK:
        told = answer.json()
        step.degraded += bool(told["degraded_stages"])
        step.took_ms.append(told["took_ms"])


async def ask_nginx(http: httpx.AsyncClient, due: float, step: Step) -> None:
    """What an answer takes that no process of ours gives."""
    with contextlib.suppress(httpx.HTTPError):
        await http.get("/nginx-health")
        step.idle_ms.append((time.perf_counter() - due) * 1e3)


class Load:
    """Asks for as long as the block lasts; each request counts for the step that was current when it was due."""

    def __init__(self, url: str, rate: float) -> None:
        self._url, self._rate = url, rate
        self.step: Step | None = None

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S, trust_env=False, limits=limits) as http,
            asyncio.TaskGroup() as tasks,
        ):
            begin = time.perf_counter()
            arrivals = [(after, ask) for after in poisson(self._rate, 3600)]
            arrivals += [(after, ask_nginx) for after in poisson(IDLE_RATE, 3600)]
            for after, asking in sorted(arrivals, key=lambda arrival: arrival[0]):
                await asyncio.sleep(max(0.0, begin + after - time.perf_counter()))
                tasks.create_task(asking(http, begin + after, self.step or Step("warm-up")))


async def rounds(world_: World, rate: float, count: int) -> tuple[list[Step], dict[str, float]]:
    steps: list[Step] = []
    load = Load(world_.nginx.url, rate)
    running = asyncio.create_task(load.run())

    async def during(name: str, work: Any) -> None:
        load.step = Step(name)
        steps.append(load.step)
        await work
        await asyncio.sleep(SETTLE_S)
        print("  ".join(f"{key} {value}" for key, value in steps[-1].row().items()), flush=True)

    await asyncio.sleep(5)
    processes = world_.pids() | {"client": os.getpid()}
    before = {name: cpu_s(pid) for name, pid in processes.items()}
    begin = time.monotonic()
    await during("steady", asyncio.sleep(STEADY_S))
    seconds = time.monotonic() - begin
    used = {name: cpu_s(pid) - before[name] for name, pid in processes.items()}
    for _ in range(count):
        for replica in world_.replicas:
            await during(f"{replica.name} {replica.number}", asyncio.to_thread(replica.restart))
        await during("nginx reload", asyncio.to_thread(world_.nginx.send, signal.SIGHUP))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    cpu = {name: round(1e3 * spent / max(steps[0].sent, 1), 2) for name, spent in used.items()}
    cpu["cores_used"] = round(sum(used.values()) / seconds, 2)
    return steps, cpu


def run(options: argparse.Namespace) -> dict[str, Any]:
    random.seed(1)
    rows: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="silkrec-roll-") as name, world(Path(name), REPLICAS) as world_:
        gc.collect()
        gc.freeze()
        for rate in options.rates:
            steps, cpu = asyncio.run(rounds(world_, rate, options.rounds))
            rows += [{"rate": rate, **step.row()} for step in steps]
            # The names are those of the first rate.
            end = "" if rate == options.rates[0] else f"_at_{rate:g}"
            measured |= {f"{key}{end}": value for key, value in _measured(steps).items()}
            measured[f"cpu_ms{end}"] = cpu
    return {
        "machine": machine(),
        "workload": {
            "rates": options.rates,
            "rounds": options.rounds,
            "replicas": REPLICAS,
            "deadline_ms": DEADLINE_S * 1e3,
        },
        "rows": rows,
        "measured": measured,
    }


def _measured(steps: Sequence[Step]) -> dict[str, Any]:
    steady, restarts = steps[0], steps[1:]
    sent = sum(step.sent for step in restarts)
    return {
        "failed_requests": sum(step.failed for step in restarts),
        "late_share": round(sum(step.late for step in restarts) / max(sent, 1), 5),
        "steady_late_share": round(steady.late / max(steady.sent, 1), 5),
        "requests": sent,
        "degraded_share": round(sum(step.degraded for step in restarts) / max(sent, 1), 5),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0, 25.0, 12.0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
