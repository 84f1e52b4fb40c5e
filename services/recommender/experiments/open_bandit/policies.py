"""What the BTS policy does: how often each item stood at each place of its own log.

Not the mean of the logged propensities: a propensity is written down for the item that was shown, so its mean over the
rows of an item weighs each state of the policy by how often it chose the item, and comes out too high (over the items
of a place it sums to far more than 1). Frequencies sum to 1 and converge to the policy's mean over the week.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.recommender.experiments.open_bandit.log import BanditLog
from services.recommender.experiments.refusals import refuse

Values = npt.NDArray[np.float64]


def action_frequency(log: BanditLog, items: int, places: int) -> Values:
    """[items, places]: share of the rows of each place that showed the item; each column sums to 1. Raises
    ValidationFailed for a place without rows: nothing says what the policy does there."""
    counts = counts_of(log, items, places)
    empty = np.flatnonzero(counts.sum(axis=0) == 0)
    if len(empty):
        raise refuse("log", f"has no rows at places {empty.tolist()}, so the policy is not known there")
    return frequency_of(counts)


def counts_of(log: BanditLog, items: int, places: int) -> Values:
    """[items, places] rows."""
    flat = np.bincount(log.item * places + log.place, minlength=items * places)
    return flat.astype(np.float64).reshape(items, places)


def frequency_of(counts: Values) -> Values:
    """Each column to a sum of 1; an empty one stays 0."""
    frequency: Values = counts / np.maximum(counts.sum(axis=-2, keepdims=True), 1.0)
    return frequency
