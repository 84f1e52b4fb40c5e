"""What one forward pass reads and gives: requests of different lengths, packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B requests, T history rows, C candidates in all; int64. Request b owns `offset[b]:offset[b+1]` of each part.

    An item_index outside [0, vocabulary) is legal and means an item the model has never seen. Rows are oldest first.
    The caller crops a history to the newest `config.max_history` rows. Training alone gives `candidate_prefix` [C], how
    many of the user's first rows a candidate may see, and then `request_time` is [C] too.
    """

    history_item: Tensor
    history_action: Tensor
    history_time: Tensor
    history_offset: Tensor
    candidate_item: Tensor
    candidate_offset: Tensor
    request_time: Tensor
    candidate_prefix: Tensor | None = None

    @property
    def requests(self) -> int:
        return self.history_offset.shape[0] - 1

    def to(self, device: torch.device | str) -> PackedBatch:
        prefix = self.candidate_prefix
        return PackedBatch(
            self.history_item.to(device),
            self.history_action.to(device),
            self.history_time.to(device),
            self.history_offset.to(device),
            self.candidate_item.to(device),
            self.candidate_offset.to(device),
            self.request_time.to(device),
            None if prefix is None else prefix.to(device),
        )

    @classmethod
    def from_requests(
        cls,
        histories: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]],
        candidates: Sequence[npt.ArrayLike],
        request_times: Sequence[int],
    ) -> PackedBatch:
        """`histories[b]` is (item [L], action [L], time_s [L])."""
        columns = [[np.asarray(history[i], np.int64) for history in histories] for i in range(3)]
        wanted = [np.asarray(items, np.int64) for items in candidates]
        return cls(
            _packed(columns[0]),
            _packed(columns[1]),
            _packed(columns[2]),
            _offsets(columns[0]),
            _packed(wanted),
            _offsets(wanted),
            torch.as_tensor(np.asarray(request_times, np.int64)),
        )


@dataclass(frozen=True, slots=True)
class RankerOutput:
    """`user_vector` [B, D] float32, in the space of `Ranker.item_vectors()`; `logits` [C, A] float32."""

    user_vector: Tensor
    logits: Tensor


def _packed(parts: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))


def _offsets(parts: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    ends = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return torch.from_numpy(ends)
