"""Waiting for a store without blaming it for our own lateness.

On a busy event loop a timer and the answer that it waits for come up in the same round, and the timer wins: at 200
requests a second on one core that alone opened the breaker of a healthy Redis, and the database reads that followed
kept the core busy. So a late answer gets a few more rounds of the loop, in which whatever has arrived is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
# Bytes, then the reader's future, then its task, then ours; one to spare.
ROUNDS = 5
# A timer that fires later than this says that we were late, and nothing about the store.
PUNCTUAL_S = 0.002


class StoreLate(TimeoutError):
    """No answer in time. `punctual`: we looked in time as well, so the store is to blame."""

    def __init__(self, *, punctual: bool) -> None:
        super().__init__("no answer in time")
        self.punctual = punctual


async def within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What `work` returns or raises; StoreLate after `timeout_s` and a few rounds, never after twice `timeout_s` but
    for a round that takes longer."""
    clock = asyncio.get_running_loop().time
    end = clock() + timeout_s
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=max(0.0, timeout_s))
        punctual = clock() - end < PUNCTUAL_S
        for _ in range(ROUNDS):
            if task.done() or clock() - end >= timeout_s:
                break
            await asyncio.sleep(0)
        if not task.done():
            raise StoreLate(punctual=punctual)
        return task.result()
    finally:
        if not task.done():
            task.add_done_callback(_seen)
            task.cancel()


def _seen(task: asyncio.Task[Any]) -> None:
    """What a cancelled read still raises is of no interest to anybody."""
    if not task.cancelled():
        task.exception()
