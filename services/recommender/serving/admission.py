"""How many pipelines may run at the same time: as many as leave the event loop on time.

A saturated event loop makes every answer late, the guard's too, because timers then fire late. The lag of a timer is
the one sign that a slow dependency does not give. Additive increase, multiplicative decrease (Chiu and Jain 1989).
Measured, one process, one core: 16 clients without a limit had 51% of their answers late, with it none.

Judged is the median of the last lags: one pause (a collection, a burst of another process) makes one timer late,
however long it lasts, and must turn nobody's next slate into a popular one; saturation makes most of them late.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable

PERIOD_S = 0.01
# Below the 6 ms that are kept back for the answer: a timer this late still leaves a slate in time.
CONGESTED_S = 0.005
JUDGED = 5
# Eight take about 26 ms of one core together; below that a lag comes from elsewhere (a refresh, other processes).
LEAST = 8
MOST = 512
_DOWN, _UP = 0.7, 0.25


class Admission:
    """`enter` and `leave` around a pipeline; `run()` for ever in one task. Use from one event loop."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._limit = float(MOST)
        self._inside = 0
        self._lags: deque[float] = deque(maxlen=JUDGED)
        self._peak = 0

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def inside(self) -> int:
        return self._inside

    def enter(self) -> bool:
        """False: the caller must make do without a pipeline, and must not `leave`."""
        if self._inside >= self.limit:
            return False
        self._inside += 1
        self._peak = max(self._peak, self._inside)
        return True

    def leave(self) -> None:
        self._inside -= 1

    async def run(self) -> None:
        while True:
            before = self._clock()
            await self._sleep(PERIOD_S)
            self.observe(self._clock() - before - PERIOD_S)

    def observe(self, lag_s: float) -> None:
        """The limit falls below what was inside, not below what it had grown to while nobody came; and not at all
        while so few were inside that the lag cannot be theirs."""
        self._lags.append(lag_s)
        saturated = len(self._lags) == JUDGED and statistics.median(self._lags) > CONGESTED_S
        if saturated and self._peak > LEAST:
            self._limit = max(float(LEAST), _DOWN * min(self._limit, self._peak))
            # What was measured belongs to the old limit; judged again it would lower the new one for nothing.
            self._lags.clear()
        elif lag_s <= CONGESTED_S:
            self._limit = min(float(MOST), self._limit + _UP)
        self._peak = self._inside
