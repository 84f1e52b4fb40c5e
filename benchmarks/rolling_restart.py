"""Every process restarted in turn, under load, and nobody notices.

    python -m benchmarks.rolling_restart [--rate 50] [--rounds 1] [--json FILE]

Two replicas of each Python service behind a real nginx on infra/nginx's files, over one private MariaDB and Redis,
with a small trained model. Poisson arrivals of `/v1/recommend` through nginx; latencies count from when a request was
due, by the client's clock. Then SIGTERM and a new start for each process, one after the other once the one before is
ready, and a reload of nginx. `failed_requests`: a 5xx or a connection error; `late_share`: answers later than 68 ms, or
none. A row a step, and one (`steady`) without a restart, which says what the machine itself does.
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
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.replicas import World, world
from services.cli.tune.open_loop import poisson
from tests.e2e.suite import USERS

DEADLINE_S = 0.068
TIMEOUT_S = 5.0
STEADY_S, SETTLE_S = 15.0, 2.0
REPLICAS = 2


@dataclass
class Step:
    """What was asked while one process was restarted. `ms`: of answers."""

    name: str
    sent: int = 0
    failed: int = 0
    late: int = 0
    degraded: int = 0
    ms: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.ms, [50, 99]) if self.ms else (float("nan"),) * 2
        return {
            "step": self.name,
            "sent": self.sent,
            "failed": self.failed,
            "late": self.late,
            "degraded": self.degraded,
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "max_ms": round(max(self.ms, default=float("nan")), 1),
        }


async def ask(http: httpx.AsyncClient, due: float, step: Step) -> None:
    body = {"user_id": f"u{random.randrange(USERS)}", "count": 10}
    step.sent += 1
    try:
        answer = await http.post("/v1/recommend", json=body)
    except httpx.HTTPError:
        step.failed += 1
        step.late += 1
        return
    seconds = time.perf_counter() - due
    step.failed += answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    step.late += seconds > DEADLINE_S
    step.degraded += bool(answer.status_code == httpx.codes.OK and answer.json()["degraded_stages"])
    step.ms.append(seconds * 1e3)


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
            for after in poisson(self._rate, 3600):
                await asyncio.sleep(max(0.0, begin + after - time.perf_counter()))
                tasks.create_task(ask(http, begin + after, self.step or Step("warm-up")))


async def rounds(world_: World, rate: float, count: int) -> list[Step]:
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
    await during("steady", asyncio.sleep(STEADY_S))
    for _ in range(count):
        for replica in world_.replicas:
            await during(f"{replica.name} {replica.number}", asyncio.to_thread(replica.restart))
        await during("nginx reload", asyncio.to_thread(world_.nginx.send, signal.SIGHUP))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return steps


def run(options: argparse.Namespace) -> dict[str, Any]:
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="silkrec-roll-") as name, world(Path(name), REPLICAS) as world_:
        gc.collect()
        gc.freeze()
        steps = asyncio.run(rounds(world_, options.rate, options.rounds))
    steady, restarts = steps[0], steps[1:]
    sent = sum(step.sent for step in restarts)
    measured = {
        "failed_requests": sum(step.failed for step in restarts),
        "late_share": round(sum(step.late for step in restarts) / max(sent, 1), 5),
        "steady_late_share": round(steady.late / max(steady.sent, 1), 5),
        "requests": sent,
        "degraded_share": round(sum(step.degraded for step in restarts) / max(sent, 1), 5),
    }
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "workload": {
            "rate": options.rate,
            "rounds": options.rounds,
            "replicas": REPLICAS,
            "deadline_ms": DEADLINE_S * 1e3,
        },
        "rows": [step.row() for step in steps],
        "measured": measured,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"]))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
