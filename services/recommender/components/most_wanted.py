"""Every item that could be shown to anybody, in the order in which an item that nothing speaks for would be."""

from __future__ import annotations

import numpy as np

from services.recommender.pipeline.context import Snapshot
from shared.contracts.history import Int32


def most_wanted(snapshot: Snapshot, k: int) -> Int32:
    """[<= k] popular items, then the newest, then all others; a deeper answer begins as a shallow one."""
    popular = snapshot.popular.top(k).item_index
    if len(popular) >= k:
        return popular
    others = np.ones(snapshot.catalogue.size, np.bool_)
    others[popular[popular < len(others)]] = False
    newest = snapshot.fresh.item_index
    newest = newest[others[newest]]
    others[newest] = False
    return np.concatenate([popular, newest, np.flatnonzero(others)])[:k].astype(np.int32)
