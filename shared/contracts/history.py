"""The packed history: what Redis holds, what the recommender reads, what the inference service receives.

A row is 13 bytes, little-endian: item_index int32, action int8, time int64 (whole seconds since 1970, UTC), ordered by
(occurred_at, event_seq), oldest first. 2,048 rows are 26.6 KB. Numpy views the bytes without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

HISTORY_FORMAT = 1
HISTORY_ROW = np.dtype([("item", "<i4"), ("action", "i1"), ("time", "<i8")])
History = npt.NDArray[np.void]
"""[L] of HISTORY_ROW."""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


def empty_history() -> History:
    return np.empty(0, HISTORY_ROW)


def pack(item: npt.ArrayLike, action: npt.ArrayLike, time_s: npt.ArrayLike) -> History:
    """Columns [L] to rows [L]; the caller has ordered them."""
    rows = np.empty(len(np.asarray(item)), HISTORY_ROW)
    rows["item"], rows["action"], rows["time"] = item, action, time_s
    return rows


def unpack(blob: bytes) -> History:
    """Bytes to a read-only view [L]. Raises ValueError when the length is no whole number of rows."""
    return np.frombuffer(blob, HISTORY_ROW)


@dataclass(frozen=True, slots=True)
class UserHistory:
    """A user's history as of `revision`, the count of committed changes to it (0: never seen).

    `last_event_id` is the newest event the rows hold. `source` says where it was read: redis, database or none.
    """

    user_key: str
    rows: History = field(default_factory=empty_history)
    revision: int = 0
    last_event_id: str | None = None
    source: str = "none"
