"""Where a FAISS search runs: on the event loop while it is short, in two threads of its own when it is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import Overloaded

T = TypeVar("T")
# Flat, 64 dimensions, one core: 10,000 vectors 0.1 ms, 50,000 0.6 ms, 100,000 1.1 ms, and twelve queries twelve times
# that. A trip to a thread and back costs 0.15 ms while the event loop is idle; beyond 1 ms all other requests would
# wait on this one.
INLINE_ROWS = 80_000
THREADS = 2
MAX_WAITING = 64


class Searcher:
    """One a process. Raises Overloaded when 64 searches wait already."""

    def __init__(self, *, inline_rows: int = INLINE_ROWS, threads: int = THREADS) -> None:
        self._inline_rows = inline_rows
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="faiss")  # threads start at first use
        self._waiting = 0
        self._count = threading.Lock()  # the thread that ended a search counts it down

    async def run(self, rows: int, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)`; `rows`: vectors of the index times queries."""
        if rows <= self._inline_rows:
            return work(*arguments)
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} searches of the index wait already")
        with self._count:
            self._waiting += 1
        future = self._threads.submit(work, *arguments)
        future.add_done_callback(lambda _future: self._loosen())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _loosen(self) -> None:
        with self._count:
            self._waiting -= 1
