"""What every retrieval source answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.contracts.history import Float32, Int32


@dataclass(frozen=True, slots=True)
class Hits:
    """`item_index [n]` int32, best first, each once; `score [n]` float32, comparable inside one source only."""

    item_index: Int32
    score: Float32

    def __len__(self) -> int:
        return len(self.item_index)


def no_hits() -> Hits:
    return Hits(np.empty(0, np.int32), np.empty(0, np.float32))
