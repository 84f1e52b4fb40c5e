"""Which kind of FAISS index a space gets, by its number of items.

`by_items` is the behaviour source's search, 200 neighbours of twelve seeds; 64 dimensions, one core of two
(`benchmarks/retrieval.py`); recall@100 of IVF 0.994, 0.988 and 0.951:

    items      kind            by_items p50   by user vector p50   build     file
    20,000     Flat            1.8 ms         0.18 ms              0.0 s     5 MB
               IVF512, 11      0.44 ms        0.04 ms              0.5 s     5 MB
               HNSW32          1.1 ms         0.14 ms              2.5 s     11 MB
    100,000    Flat            9.3 ms         0.79 ms              0.0 s     26 MB
               IVF1024, 5      0.52 ms        0.05 ms              1.6 s     27 MB
               HNSW32          2.3 ms         0.24 ms              13 s      53 MB
    1,000,000  Flat            116 ms         9.1 ms               0.2 s     256 MB
               IVF4096, 8      1.1 ms         0.10 ms              18 s      265 MB

Flat is exact and has nothing to tune, but costs 0.09 ms per 1,000 items; from FLAT_ITEMS on, only the nearest
clusters are searched (IVF). HNSW is rejected: slower to search and to build, and its file is twice as large and must
lie in every process's own memory, where IVF lists are mapped and shared.
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
