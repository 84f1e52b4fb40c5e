"""Poisson arrivals at an inference door: a request is sent when it is due, whatever became of those before it, and its
latency counts from then. So a server that stalls is charged for everybody who waited."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.inference.client import GrpcInferenceClient
from shared.contracts.history import pack
from shared.contracts.inference import EncodeRequest, RankRequest
from shared.errors import SilkrecError

WARM_UP_S = 1.0
POOL = 512
Asked = RankRequest | EncodeRequest


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the requests: items and actions of the model, history rows from and to, candidates (0: encoding)."""

    items: int
    actions: Sequence[int]
    rows: tuple[int, int]
    candidates: int
    deadline_s: float


@dataclass
class Tally:
    """`whole`: every candidate scored; `good`: and in time; `in_time`: at least one scored in time; `ms`: latencies of
    answers with at least one score. What never came counts as lost."""

    seconds: float = 0.0
    sent: int = 0
    whole: int = 0
    partial: int = 0
    unscored: int = 0
    failed: int = 0
    good: int = 0
    in_time: int = 0
    ms: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """Of all requests, those answered whole and in time."""
        return self.good / max(self.sent, 1)

    def percentiles(self) -> tuple[float, float, float]:
        """p50, p95 and p99 in ms; NaN without an answer."""
        p50, p95, p99 = np.percentile(self.ms, [50, 95, 99]) if self.ms else (float("nan"),) * 3
        return float(p50), float(p95), float(p99)


def requests(seed: int, shape: Shape) -> list[Asked]:
    """A pool made beforehand: making one costs as much as sending it."""
    numbers = np.random.default_rng(seed)
    made: list[Asked] = []
    deadline_us = int(shape.deadline_s * 1e6)
    for user in range(POOL):
        rows = int(numbers.integers(*shape.rows, endpoint=True))
        times = 1_700_000_000 + np.cumsum(numbers.integers(1, 50_000, rows))
        history = pack(numbers.integers(0, shape.items, rows), numbers.choice(shape.actions, rows), times)
        if shape.candidates:
            candidate = numbers.integers(0, shape.items, shape.candidates, dtype=np.int32)
            made.append(RankRequest(f"u:{user}", history, candidate, int(times[-1]) + 60, deadline_us))
        else:
            made.append(EncodeRequest(f"u:{user}", history, deadline_us))
    return made


def poisson(rate: float, seconds: float, seed: int | None = None) -> list[float]:
    """Arrival times until `seconds` after the warm-up."""
    count = int(2 * rate * (WARM_UP_S + seconds)) + 50
    chance = np.random.default_rng(random.getrandbits(32) if seed is None else seed)
    times = np.cumsum(chance.exponential(1 / rate, count))
    return [float(at) for at in times[times < WARM_UP_S + seconds]]


async def load(
    client: GrpcInferenceClient,
    pool: Sequence[Asked],
    arrivals: Sequence[float],
    seconds: float,
    tally: Tally,
    deadline_s: float,
) -> None:
    """`arrivals` in seconds from now; what comes in the first WARM_UP_S is not counted."""
    begin = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for number, after in enumerate(arrivals):
        await asyncio.sleep(max(0.0, begin + after - time.perf_counter()))
        counts = after >= WARM_UP_S
        tally.sent += counts
        asked = _one(client, pool[number % len(pool)], begin + after, tally if counts else None, deadline_s)
        task = asyncio.create_task(asked)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    tally.seconds += seconds
    await asyncio.gather(*tasks)


async def _one(client: GrpcInferenceClient, request: Asked, due: float, tally: Tally | None, deadline_s: float) -> None:
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
    tally.good += scored == wanted and seconds <= deadline_s
    tally.in_time += scored > 0 and seconds <= deadline_s
    if scored:
        tally.ms.append(seconds * 1e3)
