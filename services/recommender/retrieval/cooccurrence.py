"""Item vectors from behaviour alone, for the time before any model: windowed PPMI, then a truncated SVD.

Levy, Goldberg, Dagan 2015, "Improving Distributional Similarity with Lessons Learned from Word Embeddings" (TACL 3):
PPMI with context smoothing, and eigenvalue weighting. The same events give the same vectors.

Memory is bounded: about 64 bytes a kept pair while they are counted (`max_pairs`), and 16 * dim bytes an item while
they are factored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from shared.actions import ActionTable
from shared.contracts.history import Bool, Float32

Matrix = csr_array[Any, tuple[int, int]]
Advance = Callable[[float], None]
"""Told the share that is done, 0 to 1."""

_SEED = 20_240_601
_PAIRS_A_CHUNK = 4_000_000
# Below this, LAPACK's full SVD is faster than ARPACK's and cannot fail to converge.
_DENSE_ITEMS = 600
_CODES = 128


class EventColumns(Protocol):
    """`services.features.reader.TrainingEvents`: columns [n], sorted by user, time, arrival."""

    @property
    def user(self) -> npt.NDArray[Any]: ...
    @property
    def item(self) -> npt.NDArray[Any]: ...
    @property
    def action(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """`window`: how many later events of the same user an event is paired with; `smoothing`, of the context's counts;
    `power`, of the singular values; `max_pairs`: beyond it the weakest pairs are dropped."""

    dim: int = 64
    # Held-out events among 100 neighbours of the newest 12 items, window 10 and 50: 0.206 and 0.170 on Amazon Beauty
    # (22,363 users), 0.497 and 0.507 on MovieLens-100K (943).
    window: int = 10
    smoothing: float = 0.75
    power: float = 0.5
    max_pairs: int = 20_000_000

    def vectors(
        self, events: EventColumns, actions: ActionTable, size: int, advance: Advance = lambda _share: None
    ) -> Float32:
        """[size, dim] by item_index, each of length 1; zero rows for items that never stood beside another."""
        return self._factors(self.association(events, actions, size, advance))

    def association(
        self, events: EventColumns, actions: ActionTable, size: int, advance: Advance = lambda _share: None
    ) -> Matrix:
        """[size, size] max(0, log(p(a, b) / (p(a) p'(b)))) with p'(b) ~ count(b)^smoothing.

        Events whose action is negative are left out: a dislike says nothing about what the item goes with. So are
        items at `size` and beyond.
        """
        kept = _liked(actions)[np.clip(events.action, 0, _CODES - 1)]
        kept &= (np.asarray(events.item) >= 0) & (np.asarray(events.item) < size)
        counts = self._counts(np.asarray(events.user)[kept], np.asarray(events.item)[kept], size, advance)
        row = np.asarray(counts.sum(axis=1), np.float64).ravel()
        context = row**self.smoothing
        pairs = counts.tocoo()
        a, b = pairs.coords
        expected = row[a] * context[b] / max(context.sum(), 1e-30)
        value = np.log(np.maximum(pairs.data, 1e-30) / np.maximum(expected, 1e-30))
        positive = value > 0
        return _matrix(value[positive].astype(np.float32), a[positive], b[positive], size)

    def _counts(self, user: npt.NDArray[Any], item: npt.NDArray[Any], size: int, advance: Advance) -> Matrix:
        """Symmetric counts; a pair at distance d counts 1/sqrt(d)."""
        total = _empty(size)
        step = max(1, _PAIRS_A_CHUNK // self.window)
        for start in range(0, len(user), step):
            end = min(start + step, len(user))
            total = _sum(total, _chunk(user, item, start, end, self.window, size))
            if total.nnz > self.max_pairs:
                total = _strongest(total, self.max_pairs)
            advance(end / len(user))
        return _sum(total, csr_array(total.T))

    def _factors(self, matrix: Matrix) -> Float32:
        size = matrix.shape[0]
        vectors = np.zeros((size, self.dim), np.float32)
        rows: Bool = np.diff(matrix.indptr) > 0
        columns: Bool = np.bincount(matrix.indices, minlength=size) > 0
        inner = csr_array(matrix[rows][:, columns].astype(np.float64))
        rank = min(self.dim, min(inner.shape) - 1)
        if rank < 1:
            return vectors
        left, weight = _svd(inner, rank)
        vectors[rows, :rank] = left * np.maximum(weight, 0) ** self.power
        return unit(vectors)


def unit(vectors: Float32) -> Float32:
    """[n, D] of length 1; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-12), np.float32)


def _liked(actions: ActionTable) -> Bool:
    liked = np.zeros(_CODES, np.bool_)
    for action in actions:
        liked[action.code] = action.sentiment != "negative"
    return liked


def _chunk(user: npt.NDArray[Any], item: npt.NDArray[Any], start: int, end: int, window: int, size: int) -> Matrix:
    """Pairs whose earlier event is one of `start:end`."""
    first: list[npt.NDArray[Any]] = []
    second: list[npt.NDArray[Any]] = []
    weight: list[npt.NDArray[np.float32]] = []
    for distance in _distances(window, len(user)):
        stop = min(end, len(user) - distance)
        if stop <= start:
            break
        a, b = slice(start, stop), slice(start + distance, stop + distance)
        pair = (user[a] == user[b]) & (item[a] != item[b])
        first.append(item[a][pair])
        second.append(item[b][pair])
        weight.append(np.full(int(pair.sum()), distance**-0.5, np.float32))
    if not first:
        return _empty(size)
    return _matrix(np.concatenate(weight), np.concatenate(first), np.concatenate(second), size)


def _distances(window: int, length: int) -> Iterator[int]:
    return iter(range(1, min(window, length - 1) + 1))


def _strongest(counts: Matrix, keep: int) -> Matrix:
    """Drops the weakest pairs: the bound on memory for catalogues whose pairs would not fit. Of equal ones those with
    the lowest indices stay, so that the result does not depend on a sort."""
    pairs = counts.tocoo()
    threshold = np.partition(pairs.data, len(pairs.data) - keep)[len(pairs.data) - keep]
    kept = pairs.data > threshold
    equal = np.flatnonzero(pairs.data == threshold)
    kept[equal[: keep - int(kept.sum())]] = True
    return _matrix(pairs.data[kept], pairs.coords[0][kept], pairs.coords[1][kept], counts.shape[0])


def _svd(matrix: Any, rank: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Left vectors [n, rank] and singular values, largest first; signs fixed, so that it is one answer."""
    if min(matrix.shape) <= _DENSE_ITEMS and max(matrix.shape) <= 2 * _DENSE_ITEMS:
        left, weight, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.random.default_rng(_SEED).standard_normal(min(matrix.shape))
        left, weight, _ = svds(matrix, k=rank, v0=start, return_singular_vectors="u")
    order = np.argsort(-weight, kind="stable")[:rank]
    left, weight = left[:, order], weight[order]
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    return left * sign, weight


def _matrix(values: npt.NDArray[np.float32], rows: npt.NDArray[Any], columns: npt.NDArray[Any], size: int) -> Matrix:
    made: Matrix = csr_array((values, (rows, columns)), shape=(size, size))
    return made


def _empty(size: int) -> Matrix:
    made: Any = csr_array((size, size), dtype=np.float32)  # scipy's stubs take a shape for a vector's values
    return csr_array(made)


def _sum(a: Matrix, b: Matrix) -> Matrix:
    # scipy's stubs take the sum of two matrices for a vector.
    total: Any = a + b
    return csr_array(total)
