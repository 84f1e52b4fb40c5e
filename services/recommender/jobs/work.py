"""What a job asks of a worker and gets back: the seam between the durable part (chunks, leases, outputs) and the bulk
path that makes slates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shared.contracts.manifest import Release


@dataclass(frozen=True, slots=True)
class SlateAsk:
    """One user of a chunk. `user_key` is `u:` or `v:` + id; `item_ids`: the list to rank, none to retrieve."""

    user_key: str
    item_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlateSpec:
    """Common to a job. `count` items a slate; `filter` in the filter language; `diversity` in [0, 1], None: the
    scene's; `now_s`: the time that slates are made for, None: that of computing; `seed`, None: the user's own."""

    scene: str
    count: int
    filter: str | None = None
    diversity: float | None = None
    now_s: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class UserSlate:
    """`item_ids`, `item_index [n]` int32 and `scores [n]` float32, best first. `degraded`: `stage:cause` of what the
    slate gave up. `error`: why there is none, for this user alone; then it is empty."""

    user_key: str
    item_ids: tuple[str, ...]
    item_index: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    degraded: tuple[str, ...] = ()
    error: str | None = None


class SlateMaker(Protocol):
    """Open for the length of a worker process."""

    @property
    def release(self) -> Release | None:
        """With which the next slates are made: its name, model and index version; None before one is active."""
        ...

    async def slates(self, spec: SlateSpec, asks: Sequence[SlateAsk]) -> list[UserSlate]:
        """One a user, in the order of `asks`. Never raises for one user. Raises what the next attempt may mend:
        DependencyError (no engine, no store); and ValidationFailed for a spec that no attempt can serve."""
        ...
