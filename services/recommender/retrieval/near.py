"""Neighbours of single items, kept: an index never changes, and what many people met lately are the same few items."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from shared.contracts.history import Float32, Int32, Int64

KEPT = 8192
"""Of 112 neighbours each: 11 MB."""
Row = tuple[Float32, Int64]
"""Of one item: cosines [each], falling, and positions [each], -1 behind the last."""


class NearItems:
    """`search` takes seeds [M] and how many neighbours each. Safe in several threads."""

    def __init__(self, search: Callable[[Int32, int], tuple[Float32, Int64]], *, kept: int = KEPT) -> None:
        self._search = search
        self._kept = kept
        self._rows: OrderedDict[tuple[int, int], Row] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, seeds: Int32, each: int) -> tuple[Float32, Int64]:
        """Cosines and positions, both [M, <= each]; seeds that were not asked of late are searched for together."""
        wanted = [(seed, each) for seed in seeds.tolist()]
        with self._lock:
            found = [self._rows.get(key) for key in wanted]
            for key, row in zip(wanted, found, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        missing = [place for place, row in enumerate(found) if row is None]
        if len(missing) == len(wanted):
            rows = self._search(seeds, each)
            self._keep(wanted, rows)
            return rows
        if missing:
            rows = self._search(seeds[missing], each)
            self._keep([wanted[place] for place in missing], rows)
            for number, place in enumerate(missing):
                found[place] = (rows[0][number], rows[1][number])
        there = [row for row in found if row is not None]
        return np.stack([scores for scores, _ in there]), np.stack([near for _, near in there])

    def _keep(self, wanted: list[tuple[int, int]], rows: tuple[Float32, Int64]) -> None:
        with self._lock:
            for number, key in enumerate(wanted):
                # Copies: a view of a row would keep all rows of its search alive.
                self._rows[key] = (rows[0][number].copy(), rows[1][number].copy())
            while len(self._rows) > self._kept:
                self._rows.popitem(last=False)
