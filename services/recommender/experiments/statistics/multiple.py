"""p-values adjusted for how many were asked: compare them with the same α.

Holm 1979 (any dependence; the chance of even one false discovery stays below α); Benjamini and Hochberg 1995 (the
share of false ones among the discoveries stays below α; independent or positively dependent). GrowthBook offers the
same two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.refusals import refuse

Values = npt.NDArray[np.float64]


def holm(p_values: Sequence[float]) -> list[float]:
    """In the given order: the k-th smallest of m becomes max over j <= k of (m - j + 1) p_j, at most 1."""
    p, order = _ordered(p_values)
    steps = np.arange(len(p), 0, -1)
    return _back(np.maximum.accumulate(p[order] * steps), order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """In the given order: the k-th smallest of m becomes min over j >= k of m p_j / j, at most 1."""
    p, order = _ordered(p_values)
    raised = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _back(np.minimum.accumulate(raised[::-1])[::-1], order)


def _ordered(p_values: Sequence[float]) -> tuple[Values, npt.NDArray[np.intp]]:
    p = np.asarray(p_values, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise refuse(
            "p_values", f"hold {[one for one in p_values if not 0 <= one <= 1]}; leave out what was not tested"
        )
    return p, np.argsort(p, kind="stable")


def _back(adjusted: Values, order: npt.NDArray[np.intp]) -> list[float]:
    placed = np.empty_like(adjusted)
    placed[order] = np.minimum(adjusted, 1.0)
    return [float(one) for one in placed]
