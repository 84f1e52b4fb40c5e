"""Where a FAISS search runs: on the event loop while it is short, in two threads of its own when it is not.

Item to item is kept: an index never changes, shelves of one page start from the same items, and a product page from its
product, whoever looks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.recommender.pipeline.context import Index
from services.recommender.retrieval.hits import Hits
from shared.contracts.history import Int32
from shared.errors import Overloaded

T = TypeVar("T")
# 200 hits are 1.6 KB: 7 MB in all.
KEPT = 4096
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
        self._index: Index | None = None
        self._kept: OrderedDict[tuple[bytes, int], Hits] = OrderedDict()

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

    async def neighbours(self, index: Index, seeds: Int32, k: int) -> Hits:
        """`index.by_items(seeds, k)`; of one index at a time, the last KEPT answers are remembered."""
        if index is not self._index:
            self._index, self._kept = index, OrderedDict()
        kept, key = self._kept, (seeds.tobytes(), k)
        found = kept.get(key)
        if found is None:
            found = kept[key] = await self.run(index.rows_searched * len(seeds), index.by_items, seeds, k)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _loosen(self) -> None:
        with self._count:
            self._waiting -= 1
