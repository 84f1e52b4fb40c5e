"""What the doors hand to the engine and get back. Numpy columns; no wire format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """`history_*` [L], oldest first; `candidate` [N] in retrieval order, None to encode. `deadline_us` is what remains.

    `model_version` empty: the active one. `priority` 0 is the most urgent class.
    """

    history_item: Int32
    history_action: Int8
    history_time: Int64
    candidate: Int32 | None
    request_time_s: int
    deadline_us: int
    user_key: str = ""
    model_version: str = ""
    priority: int = 0

    def newest(self, rows: int) -> InferRequest:
        """The same with at most the newest `rows` history rows; views, no copies."""
        if len(self.history_item) <= rows:
            return self
        return InferRequest(
            self.history_item[-rows:],
            self.history_action[-rows:],
            self.history_time[-rows:],
            self.candidate,
            self.request_time_s,
            self.deadline_us,
            self.user_key,
            self.model_version,
            self.priority,
        )


@dataclass(frozen=True, slots=True)
class ItemContent:
    """Of an item that came after training: `tokens` are rows of the model's token table."""

    item_index: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Of all loaded models together."""

    users: int = 0
    device_pages: int = 0
    device_pages_free: int = 0
    host_pages: int = 0
    host_pages_free: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class InferAnswer:
    """Encoding: `user_vector` [D]. Ranking: `scores` [N, A] (zero where not scored), `scored` [N] and, when some are
    not, `reason`. `cached_events`: history rows whose states were not computed anew."""

    model_version: str
    user_vector: Float32 | None = None
    scores: Float32 | None = None
    scored: Bool | None = None
    reason: str = ""
    cached_events: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A request's place in a batch: its first `candidates` are scored."""

    request: InferRequest
    candidates: int
