"""Several rankings into one: reciprocal rank fusion (Cormack, Clarke, Büttcher 2009, SIGIR).

Scores of different sources are not comparable, ranks are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.contracts.history import Float32, Int32, Int64

K = 60.0  # the paper's constant: flat enough that two sources in agreement beat the top of one


def fuse(rankings: Sequence[Int32], weights: Sequence[float]) -> tuple[Int32, Int64, Float32]:
    """`(item_index [N], source_bits [N], score [N])`, each item once, best first; equal scores in the order of sources.

    `rankings`: one a source, best first (empty: the source gave nothing); bit s belongs to `rankings[s]`.
    score = sum over sources of weight / (60 + place), places from 1. Negative indices are no items.
    """
    lengths = [len(ranking) for ranking in rankings]
    flat = np.concatenate([np.empty(0, np.int32), *rankings]).astype(np.int32)
    source = np.repeat(np.arange(len(rankings)), lengths)
    place = np.concatenate([np.empty(0), *(np.arange(1, length + 1) for length in lengths)])
    valid = flat >= 0
    flat, source, place = flat[valid], source[valid], place[valid]
    items, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    score = np.bincount(inverse, np.asarray(weights, np.float64)[source] / (K + place), len(items))
    bits = np.zeros(len(items), np.int64)
    np.bitwise_or.at(bits, inverse, np.int64(1) << source.astype(np.int64))
    order = np.lexsort((first, -score))
    return items[order], bits[order], score[order].astype(np.float32)
