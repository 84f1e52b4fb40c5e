"""Events with something to learn: each user walks one of a few rings of items, forwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RINGS, RING = 4, 10
ITEMS = RINGS * RING + 1


@dataclass
class Events:
    user: npt.NDArray[Any]
    item: npt.NDArray[Any]
    action: npt.NDArray[Any]
    time: npt.NDArray[Any]


def walks(users: int = 80, length: int = 12, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, RING, users)
    steps = (start[:, None] + np.arange(length)) % RING
    item = 1 + (np.arange(users)[:, None] % RINGS) * RING + steps
    return Events(
        np.repeat(np.arange(users), length).astype(np.int32),
        item.ravel().astype(np.int32),
        rng.integers(1, 3, users * length).astype(np.int8),
        np.tile(np.arange(length) * 3600, users).astype(np.int64) + 10**9,
    )
