"""Maximal marginal relevance (Carbonell and Goldstein 1998, SIGIR), over vectors of any kind."""

from __future__ import annotations

import numpy as np

from shared.contracts.history import Float32, Int64


def mmr(relevance: Float32, vectors: Float32, diversity: float, depth: int) -> Int64:
    """A permutation of [M]: `depth` greedy choices, then the rest in their order.

    Each choice maximises (1 - diversity) x relevance - diversity x (largest cosine to what is chosen). `relevance [M]`
    comes best first and is scaled to [0, 1] here; `vectors [M, D]` need no unit length, a zero row resembles nothing.
    `diversity` 0 changes nothing. O(depth x M x D).

    A product a choice, not one for all: OpenBLAS gives M x D x M to threads that then spin, which doubled the CPU time
    of a whole request.
    """
    count = len(relevance)
    if diversity <= 0 or count < 2 or depth < 1:
        return np.arange(count)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    worth = np.float32(1.0 - diversity) * _scaled(relevance)
    nearest = np.full(count, -np.inf, np.float32)
    likeness, value = np.empty(count, np.float32), worth.copy()
    chosen: list[int] = []
    for _ in range(min(depth, count)):
        best = int(value.argmax())
        chosen.append(best)
        np.dot(unit, diversity * unit[best], out=likeness)
        np.maximum(nearest, likeness, out=nearest)
        nearest[best] = np.inf  # never chosen again
        np.subtract(worth, nearest, out=value)
    free = np.ones(count, np.bool_)
    free[chosen] = False
    return np.concatenate([np.array(chosen, np.int64), np.flatnonzero(free)])


def _scaled(relevance: Float32) -> Float32:
    low, high = float(relevance.min()), float(relevance.max())
    if high - low < 1e-12:
        # No score to go by: the order itself is the relevance.
        return np.linspace(1.0, 0.0, len(relevance), dtype=np.float32)
    return np.asarray((relevance - low) / (high - low), np.float32)
