"""What a process uses and what waits in it: CPU, memory, disk, its event loop, its pools. The same in every service.

Counted by each process for itself, so that the sums over several behind one port are right; the client library's own
`process_*` are there with one process only.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics

TICK_S = 0.25
"""Four looks a second at the event loop cost 0.01 % of a core, and a stall of a quarter of a second cannot hide."""
SAMPLE_TICKS = 20
_LOOP_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.068, 0.1, 0.25, 1.0)
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PoolUse:
    """`waiting`: callers that found no connection free. `waited_s`: how long all of them did, since the start."""

    in_use: int
    limit: int
    waiting: int = 0
    waited_s: float = 0.0


class ResourceMetrics:
    """`run` belongs to a TaskOwner; `pools` are asked by name every five seconds."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        state: Path,
        pools: Mapping[str, Callable[[], PoolUse]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._pools = state, pools
        self._sleep, self._clock = sleep, clock
        self._process = psutil.Process()
        self._cpu_s = 0.0
        self._waited_s = dict.fromkeys(pools, 0.0)
        self._disk_failed = False
        self._cpu = metrics.counter("cpu_seconds_total", "CPU time of the process, all threads")
        self._resident = metrics.gauge("resident_memory_bytes", "Memory of the process")
        self._free = metrics.gauge("state_free_bytes", "Free on the disk of the state folder", combined="livemax")
        self._size = metrics.gauge("state_size_bytes", "Size of the disk of the state folder", combined="livemax")
        self._loop = metrics.histogram(
            "event_loop_delay_seconds", "How late the event loop runs what is due", buckets=_LOOP_BUCKETS_S
        )
        self._in_use = metrics.gauge("pool_in_use", "Connections of a pool that somebody has", ["pool"])
        self._limit = metrics.gauge("pool_limit", "Connections that a pool may have", ["pool"])
        self._waiting = metrics.gauge("pool_waiting", "Callers that wait for a connection of a pool", ["pool"])
        self._waited = metrics.counter("pool_wait_seconds_total", "Waits for a connection of a pool", ["pool"])

    async def run(self) -> None:
        while True:
            self.sample()
            for _ in range(SAMPLE_TICKS):
                due = self._clock() + TICK_S
                await self._sleep(TICK_S)
                self._loop.observe(max(0.0, self._clock() - due))

    def sample(self) -> None:
        """0.1 ms."""
        times = self._process.cpu_times()
        cpu_s = times.user + times.system
        self._cpu.inc(max(0.0, cpu_s - self._cpu_s))
        self._cpu_s = cpu_s
        self._resident.set(self._process.memory_info().rss)
        self._sample_disk()
        for name, use in self._pools.items():
            now = use()
            self._in_use.labels(name).set(now.in_use)
            self._limit.labels(name).set(now.limit)
            self._waiting.labels(name).set(now.waiting)
            self._waited.labels(name).inc(max(0.0, now.waited_s - self._waited_s[name]))
            self._waited_s[name] = now.waited_s

    def _sample_disk(self) -> None:
        try:
            disk = shutil.disk_usage(self._state)
        except OSError as error:
            if not self._disk_failed:
                _log.warning("the state folder's disk cannot be asked", detail=str(error))
            self._disk_failed = True
            return
        self._disk_failed = False
        self._free.set(disk.free)
        self._size.set(disk.total)
