"""The open-loop load: Poisson arrivals, a request sent when it is due whatever became of those before it, latencies
counted from then. It runs in the benchmark's own process, so never inside a server's.

A trial at a rate passes when at least 99 % of its requests come back whole (every candidate scored) within 68 ms.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.peers.clients import Asker
from benchmarks.peers.workload import DEADLINE_S, Trace

SHARE = 0.99
WARM_UP_S = 1.0
_PRIMING = 4
"""Primes under way at once."""


@dataclass(slots=True)
class Trial:
    """`counted`: requests after the warm-up; `good`: those back whole and in time; `ms`: latencies of whole answers,
    from when they were due; `latest_ms`: the longest that any caller waited, whatever came, from its call;
    `foreign`: cores that processes other than the server's and the load's took meanwhile."""

    rate: float
    seconds: float = 0.0
    counted: int = 0
    good: int = 0
    bad: int = 0
    aborted: bool = False
    ms: list[float] = field(default_factory=list)
    latest_ms: float = 0.0
    foreign: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.aborted and self.good >= SHARE * self.counted

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    def percentiles(self) -> tuple[float, float, float]:
        p50, p95, p99 = np.percentile(self.ms, [50, 95, 99]) if self.ms else (math.nan,) * 3
        return float(p50), float(p95), float(p99)


@dataclass(frozen=True, slots=True)
class Length:
    """Of a trial after its warm-up: so long, but at least so many requests, so that 1 % is a handful and not one."""

    seconds: float
    least: int


def arrivals(seed: int, rate: float, length: Length) -> list[float]:
    """Seconds from the start. The same seed gives the same arrivals at every rate, closer together or further apart."""
    random = np.random.default_rng([seed, 7])
    count = max(int(rate * length.seconds), length.least) + int(rate * WARM_UP_S)
    return [float(at) for at in np.cumsum(random.exponential(1.0, count)) / rate]


async def trial(
    asker: Asker, workload: str, seed: int, rate: float, length: Length, *, to_the_end: bool = False
) -> Trial:
    """Ends early once it cannot pass any more, unless `to_the_end`."""
    trace, dues = Trace(workload, seed), arrivals(seed, rate, length)
    prepared = [asker.prepare(ask) for ask in itertools.islice(trace, len(dues))]
    await _prime(asker, trace)
    counted = sum(due >= WARM_UP_S for due in dues)
    found = Trial(rate, seconds=dues[-1] - WARM_UP_S)
    most_bad = math.inf if to_the_end else counted - SHARE * counted
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        await _send(asker, prepared, dues, found, most_bad)
    finally:
        gc.enable()
        gc.unfreeze()
    return found


async def _send(asker: Asker, prepared: list[object], dues: list[float], found: Trial, most_bad: float) -> None:
    begin = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for item, after in zip(prepared, dues, strict=True):
        wait_s = begin + after - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        counts = after >= WARM_UP_S
        found.counted += counts
        task = asyncio.create_task(_one(asker, item, begin + after, found if counts else None))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if found.bad > most_bad:
            found.aborted = True
            break
    await asyncio.gather(*tasks)


async def _one(asker: Asker, prepared: object, due: float, found: Trial | None) -> None:
    begin = time.perf_counter()
    whole = await asker.ask(prepared)
    if found is None:
        return
    now = time.perf_counter()
    seconds = now - due
    found.latest_ms = max(found.latest_ms, (now - begin) * 1e3)
    good = whole and seconds <= DEADLINE_S
    found.good += good
    found.bad += not good
    if whole:
        found.ms.append(seconds * 1e3)


async def _prime(asker: Asker, trace: Trace) -> None:
    if not asker.keeps_users:
        return
    waiting = iter([asker.prepare(ask) for ask in trace.primes])

    async def send() -> None:
        for item in waiting:
            await asker.ask(item)

    await asyncio.gather(*(send() for _ in range(_PRIMING)))


async def calm(asker: Asker, *, within_s: float = 20.0) -> None:
    """Returns once five requests in a row, one at a time, come back in time: a backlog is not the next trial's."""
    trace = iter(Trace("cold", 1 << 20))
    streak, end = 0, time.perf_counter() + within_s
    while streak < 5 and time.perf_counter() < end:
        begin = time.perf_counter()
        whole = await asker.ask(asker.prepare(next(trace)))
        streak = streak + 1 if whole and time.perf_counter() - begin <= DEADLINE_S else 0


async def with_asker(make: Callable[[], Asker], use: Callable[[Asker], Awaitable[Trial]]) -> Trial:
    """A client of its own for one trial: connections do not outlive a server's pause."""
    asker = make()
    try:
        await calm(asker)
        return await use(asker)
    finally:
        await asker.close()
