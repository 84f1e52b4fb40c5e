"""What a served slate was like, for `experiment_slates`: diversity within it and novelty. Pure numpy, ≤ 100 items.

Source: ILD as in Ziegler et al. 2005 (WWW), with cosine; novelty as mean self-information, Vargas and Castells 2011
(RecSys), eq. 4, over the decayed popularity that the popular source ranks by.
"""

from __future__ import annotations

import numpy as np

from shared.contracts.history import Float32, Int32


def intra_list_diversity(vectors: Float32) -> float | None:
    """1 - mean cosine of all pairs of rows of `vectors [n, D]`, from 0 to 2; rows of zeros have no direction and are
    left out; None below two others. By the sum of unit rows, so O(n D) and no n x n matrix: |Σu|² = n + 2 Σ pairs."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    known = length > 0
    count = int(known.sum())
    if count < 2:
        return None
    total = (vectors[known] / length[known, None]).sum(axis=0)
    return 1.0 - (float(total @ total) - count) / (count * (count - 1))


class NoveltyTable:
    """-log2 of each item's share of popularity; an item without any counts as the least popular one known.

    Built once a popular table (2 ms for 100,000 items), read by taking."""

    def __init__(self, item_index: Int32, score: Float32) -> None:
        total = float(score.sum(dtype=np.float64))
        self.empty = len(item_index) == 0 or total <= 0
        if self.empty:
            return
        bits = -np.log2(np.maximum(score.astype(np.float64), 1e-300) / total)
        self._rest = float(bits.max())
        self._bits = np.full(int(item_index.max()) + 1, self._rest)
        self._bits[item_index] = bits

    def mean(self, item_index: Int32) -> float | None:
        """None for an empty slate, and before the first event."""
        if self.empty or len(item_index) == 0:
            return None
        inside = item_index < len(self._bits)
        bits = self._bits.take(item_index, mode="clip")
        return float(np.where(inside, bits, self._rest).mean())
