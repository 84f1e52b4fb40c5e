"""Owners of background asyncio tasks: no task dies unseen, and none outlives its owner."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics

_log = get_logger(__name__)
Sleep = Callable[[float], Awaitable[None]]
CANCEL_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """At most `restarts` within `window_s`; waits double from `first_wait_s` to `longest_wait_s`, with jitter."""

    restarts: int = 20
    window_s: float = 300.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 30.0


@dataclass(slots=True)
class _Service:
    work: Callable[[], Awaitable[None]]
    deaths: deque[float] = field(default_factory=deque)


class TaskOwner:
    """Owned by whoever opens it (a lifespan): `start` loops that run for ever, `spawn` work that ends, `close` all.

    A death is logged with its traceback, counted in `background_deaths_total{task}`, and a loop is started again.
    When the budget is spent the name stays in `dead`, for a readiness check or a supervisor to act on.
    """

    def __init__(
        self,
        *,
        metrics: Metrics | None = None,
        budget: RestartBudget | None = None,
        max_spawned: int = 1000,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._budget = budget or RestartBudget()
        self._max_spawned = max_spawned
        self._sleep = sleep
        self._deaths = (
            metrics.counter("background_deaths_total", "Background tasks that ended unasked", ["task"])
            if metrics is not None
            else None
        )
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._spawned: set[asyncio.Task[None]] = set()
        self._dead: set[str] = set()
        self._closed = False

    @property
    def dead(self) -> frozenset[str]:
        """Loops whose restart budget is spent."""
        return frozenset(self._dead)

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Keeps `work()` running until `close()`. Returning counts as dying: a loop has no reason to end."""
        if self._closed or name in self._loops:
            raise RuntimeError(f"task {name!r} cannot start: " + ("owner is closed" if self._closed else "it runs"))
        if self._deaths is not None:
            self._deaths.labels(name)  # a rate needs the zero before the first one
        self._loops[name] = asyncio.create_task(self._keep(name, _Service(work)), name=name)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work` once. False, and nothing runs, when `max_spawned` are under way or the owner is closed."""
        if self._closed or len(self._spawned) >= self._max_spawned:
            work.close()
            return False
        task = asyncio.create_task(self._once(name, work), name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        # A task cancelled before its first step never reached `work`, which Python would then complain about.
        task.add_done_callback(lambda _task: work.close())
        return True

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Cancels everything and waits for it; spawned work first gets `drain_s` to end by itself."""
        self._closed = True
        if drain_s > 0 and self._spawned:
            await asyncio.wait(set(self._spawned), timeout=drain_s)
        pending = {*self._loops.values(), *self._spawned}
        while pending:
            for task in pending:
                task.cancel()
            # Once is not enough: redis-py 8 loses a cancellation that arrives while a connection is used or made.
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
        self._loops.clear()

    async def _keep(self, name: str, service: _Service) -> None:
        loop = asyncio.get_running_loop()
        while True:
            error: Exception | None = None
            try:
                await service.work()
            except Exception as caught:  # noqa: BLE001  (whatever it died of, the owner must notice)
                error = caught
            self._count(name)
            now = loop.time()
            service.deaths.append(now)
            while service.deaths[0] < now - self._budget.window_s:
                service.deaths.popleft()
            if len(service.deaths) > self._budget.restarts:
                self._dead.add(name)
                _log.critical("background task is given up", task=name, deaths=len(service.deaths), exc_info=error)
                return
            wait = self._wait_s(len(service.deaths))
            _log.error("background task died and is started again", task=name, wait_s=round(wait, 3), exc_info=error)
            await self._sleep(wait)

    async def _once(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  (nobody awaits this task; the log is its only witness)
            self._count(name)
            _log.error("background work failed", task=name, exc_info=error)

    def _wait_s(self, deaths: int) -> float:
        longest = min(self._budget.longest_wait_s, self._budget.first_wait_s * 2.0 ** (deaths - 1))
        return longest * random.uniform(0.5, 1.0)

    def _count(self, name: str) -> None:
        if self._deaths is not None:
            self._deaths.labels(name).inc()
