from __future__ import annotations

import numpy as np

from shared.contracts.history import Bool, Int32, Int64


def locate(wanted: Int32, stored: Int32) -> tuple[Bool, Int64]:
    """`(found [N], place [N])`: where each of `wanted [N]` stands in `stored [n]`; place 0 where not found."""
    if len(stored) == 0:
        return np.zeros(len(wanted), np.bool_), np.zeros(len(wanted), np.int64)
    order = np.argsort(stored, kind="stable")
    place = order[np.searchsorted(stored, wanted, sorter=order).clip(max=len(stored) - 1)]
    found = stored[place] == wanted
    return found, np.where(found, place, 0)
