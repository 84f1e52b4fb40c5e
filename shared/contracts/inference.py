"""What the recommender and the inference service say to each other, apart from how it travels.

On the wire this is the Open Inference Protocol v2 (`contracts/oip`): tensors history_item [1,L] INT32, history_action
[1,L] INT8, history_time [1,L] INT64 (s), candidate [1,N] INT32; parameters user_key, deadline_us, priority. Many users
in one message, for jobs, have lengths beside the joined columns (`services/inference/many.py`). What the
protocol has no calls for (forgetting a user, content of new items) is a second gRPC service at the same address, with
the JSON of the REST doors in its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.contracts.history import Bool, Float32, History, Int32

MODEL_NAME = "ranker"
"""The one OIP model name; `version` tells releases apart. An empty version means the active one."""

CONTROL_SERVICE = "silkrec.inference.Control"
FORGET, UPSERT_ITEMS = "Forget", "UpsertItems"
UPSERT_MOST = 500
"""Items a call."""


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


@dataclass(frozen=True, slots=True)
class NewItem:
    """Content of an item that came after training, as the catalogue has it."""

    item_index: int
    title: str | None
    categories: tuple[str, ...]
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Upserted:
    """How many items `taken`: have a row with their content from now on; `known`: had one (its content stays what it
    was); `no_room`: the model's spare rows are used up; `without_tokens`: nothing of their content means anything to
    this model, so they stay its unknown item. `ignored_properties`: features whose values could not become tokens.
    `vocabulary`: item_index below it belongs to the model. `instance` names the process: another one knows nothing."""

    model_version: str
    vocabulary: int
    instance: str
    taken: int = 0
    known: int = 0
    no_room: int = 0
    without_tokens: int = 0
    ignored_properties: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Engines that `confirmed`, and those that do not run: latents live in an engine's memory only."""

    confirmed: int
    not_running: int
