"""Waiting that ends on time even when what is waited for does not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from shared.observability.logging import get_logger

T = TypeVar("T")
# The bytes, then five tasks and futures that each wake the next.
ROUNDS = 8
_log = get_logger(__name__)


class Stragglers:
    """Owns tasks that were told to stop and have not stopped yet; what they still raise is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def within(self, work: Coroutine[Any, Any, T], timeout_s: float, *, patience_s: float = 0.0) -> T:
        """What `work` returns or raises; TimeoutError after `timeout_s`, without waiting for `work` to obey.

        `asyncio.timeout` would wait until the cancelled work gave in, which a slow library may do much later.
        `patience_s`: while this lasts, a few more rounds of the loop. On a busy one, a timer and the answer that it
        waits for come up in the same round, and the timer would win.
        """
        task = asyncio.ensure_future(work)
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s + patience_s
        try:
            await asyncio.wait((task,), timeout=timeout_s)
            for _ in range(ROUNDS if patience_s > 0 else 0):
                if task.done() or clock() >= end:
                    break
                await asyncio.sleep(0)
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            self.stop(task)

    def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancels a task unless it is done."""
        if task.done():
            return
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a cancelled stage ended with an error", exc_info=error)
