"""How many clusters a search looks into: the fewest that reach the recall that is asked for, against exact search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from shared.contracts.history import Float32, Int64

TOP = 100
# A source asks for 200: two lists of 40 vectors may hold the exact 100 best and still leave its answer short.
LEAST_ROWS = 400


@dataclass(frozen=True, slots=True)
class Tuned:
    """`recall`: share of the exact TOP that a search with `nprobe` finds, over the queries."""

    nprobe: int
    recall: float


def exact_top(vectors: Float32, queries: Float32, k: int = TOP) -> Int64:
    """[Q, <= k] rows of `vectors` by inner product, best first."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    _, rows = flat.search(queries, min(k, len(vectors)))
    return np.asarray(rows, np.int64)


def recall(found: Int64, truth: Int64) -> float:
    """Share of `truth [Q, k]` among `found [Q, k]`, rows of the same queries."""
    if truth.size == 0:
        return 1.0
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True))
    return hits / truth.size


def tune(index: Any, queries: Float32, truth: Int64, goal: float) -> Tuned:
    """Sets `nprobe` of an IVF index to the smallest that reaches `goal` and looks at LEAST_ROWS vectors on average; all
    clusters are exact, so one always does."""
    cells = faiss.extract_index_ivf(index)
    least = min(cells.nlist, -(-LEAST_ROWS * cells.nlist // max(1, index.ntotal)))

    def measured(nprobe: int) -> float:
        cells.nprobe = nprobe
        return recall(index.search(queries, truth.shape[1])[1], truth)

    low, high = least - 1, least
    reached = measured(high)
    while reached < goal and high < cells.nlist:
        low, high = high, min(2 * high, cells.nlist)
        reached = measured(high)
    while high - low > 1:
        middle = (low + high) // 2
        found = measured(middle)
        if found >= goal:
            high, reached = middle, found
        else:
            low = middle
    cells.nprobe = high
    return Tuned(high, reached)
