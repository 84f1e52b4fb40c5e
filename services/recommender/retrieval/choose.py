"""Which kind of FAISS index a space gets, by its number of items.

Flat compares a query with every vector: exact, nothing to tune, 12 neighbour searches (one behaviour source) of 64
dimensions cost 0.12 ms per 1,000 items on one core. Beyond FLAT_ITEMS that is more than the whole slate may spend on
it, so the vectors are clustered (IVF) and only the nearest clusters are searched. `benchmarks/retrieval.py` measures
both in one run.

HNSW was measured beside them and rejected: its file is a graph that every process must hold in memory of its own,
where IVF lists are mapped and shared; it takes many times as long to build; and by inner product of vectors of unequal
length its recall is bounded by no search effort, where IVF's ends at exact.
"""

from __future__ import annotations

import math

FLAT = "Flat"
FLAT_ITEMS = 20_000
# k-means wants 39 points a cluster at least; with 64 the clusters do not get better any more.
POINTS_A_CLUSTER = 64
_LEAST_POINTS = 39


def kind_for(items: int) -> str:
    """A FAISS factory string."""
    return FLAT if items < FLAT_ITEMS else f"IVF{clusters_for(items)},Flat"


def clusters_for(items: int) -> int:
    """About 4 * sqrt(items), a power of two: then finding the clusters costs about what searching them does."""
    wanted = 1 << round(math.log2(4 * math.sqrt(max(1, items))))
    most = 1 << int(math.log2(max(1, items // _LEAST_POINTS)))
    return max(1, min(wanted, most))
