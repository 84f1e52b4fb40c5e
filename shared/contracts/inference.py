"""What the recommender and the inference service say to each other, apart from how it travels.

On the wire this is the Open Inference Protocol v2 (`contracts/oip`): tensors history_item [1,L] INT32, history_action
[1,L] INT8, history_time [1,L] INT64 (s), candidate [1,N] INT32; parameters user_key, deadline_us, priority.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.contracts.history import Bool, Float32, History, Int32

MODEL_NAME = "ranker"
"""The one OIP model name; `version` tells releases apart. An empty version means the active one."""


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """`deadline_us` is what remains, in microseconds: clocks of two machines are never compared."""

    user_key: str
    history: History
    deadline_us: int
    model_version: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """`user_vector` is [D] float32, in the space of the model's item vectors (inner product)."""

    user_vector: Float32
    model_version: str
    cached_events: int = 0


@dataclass(frozen=True, slots=True)
class RankRequest:
    """`candidate` is [N] int32 item_index, in retrieval order: a scorer short of time keeps the first ones."""

    user_key: str
    history: History
    candidate: Int32
    request_time_s: int
    deadline_us: int
    model_version: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RankResult:
    """`scores` [N, A] float32 are probabilities in the order of the manifest's actions; rows where `scored` [N] is
    False are zero, and `reason` says why (deadline, overloaded, cancelled; empty when all are scored)."""

    scores: Float32
    scored: Bool
    model_version: str
    reason: str = ""
    cached_events: int = 0
