"""How alike two sets of scores rank."""

from __future__ import annotations

import numpy as np


def rank_correlation(one: np.ndarray, other: np.ndarray, candidates: int) -> float:
    """Spearman's, of each request's candidates by the first action; the mean."""
    values = []
    for begin in range(0, len(one), candidates):
        ranks = [np.argsort(np.argsort(x[begin : begin + candidates, 0])) for x in (one, other)]
        values.append(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return float(np.mean(values))
