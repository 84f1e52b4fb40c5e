"""What a component must be. N candidates, A trained actions, D dimensions, n slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from services.recommender.domain import CandidateBatch, ExplorationRecord, Float64, Query, Rung, UserFeatures
from services.recommender.pipeline.context import Context, Snapshot
from services.recommender.retrieval.hits import Hits
from shared.contracts.history import Bool, Float32, Int32, Int64


class UserHydrator(Protocol):
    async def hydrate(self, query: Query, snapshot: Snapshot, timeout_s: float, /) -> UserFeatures:
        """History, profile and stored scores in one round trip; what is missing is named in `misses`."""
        ...


class Encoder(Protocol):
    def possible(self, context: Context) -> bool:
        """A model and an index of its vectors are there."""
        ...

    async def encode(self, context: Context, timeout_s: float) -> Float32:
        """[D], in the space of the index. Raises InferenceUnavailable, DeadlineExceeded, Overloaded."""
        ...


class Source(Protocol):
    """Proposes candidates. `weight`: in the fusion of ranks; 0 proposes without a say in the order. `protected`: its
    candidates survive the cut to the wanted number. `personal`: knows the user, so its order is worth more than
    popularity. `needs_vector`: starts after the encoder. `reason`: what an answer says of its items."""

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def needs_vector(self) -> bool: ...
    @property
    def personal(self) -> bool: ...
    @property
    def protected(self) -> bool: ...

    async def retrieve(self, context: Context, k: int, /) -> Hits:
        """At most about `k`, best first, each once; none when it has nothing to go by."""
        ...


class Filter(Protocol):
    """`late`: is asked again after ranking, because its answer may have changed meanwhile."""

    @property
    def stage(self) -> str: ...
    @property
    def late(self) -> bool: ...

    def mask(self, context: Context, item_index: Int32) -> Bool | None:
        """[N] True stays; None when this request gives it nothing to do."""
        ...

    def rule(self, context: Context, /) -> str:
        """What `explain` says about its removals."""
        ...


class Hydrator(Protocol):
    @property
    def name(self) -> str: ...

    def wanted(self, context: Context) -> bool: ...

    def columns(self, context: Context, batch: CandidateBatch) -> Mapping[str, npt.NDArray[Any]]:
        """`{name: [N] or [N, D]}`."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """`scores [N, A]` probabilities, `scored [N]`; `reason` why some are not."""

    scores: Float32
    scored: Bool
    reason: str = ""


class Scorer(Protocol):
    def actions(self, context: Context) -> tuple[str, ...]:
        """[A] names; none without a model."""
        ...

    async def score(self, context: Context, item_index: Int32, timeout_s: float) -> Scored:
        """`item_index [N]` in retrieval order. Raises InferenceUnavailable, DeadlineExceeded, Overloaded."""
        ...


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was known of the candidates before: `known [N]`, and `scores [N, A]` or, without actions, `score [N]`."""

    known: Bool
    scores: Float32 | None = None
    score: Float32 | None = None


class Fallback(Protocol):
    """A rung between the model and retrieval."""

    @property
    def rung(self) -> Rung: ...

    def recall(self, context: Context, item_index: Int32, actions: int, /) -> Recalled | None:
        """None when it knows none of `item_index [N]`."""
        ...


@dataclass(frozen=True, slots=True)
class Ranked:
    """`batch` best first, `score [N]` as the rung defines it; `actions` name the columns of `batch.scores`."""

    batch: CandidateBatch
    score: Float32
    rung: Rung
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A slate being made. `order [N]` permutes the rows of `ranked.batch`; `pinned [n]` row or -1 a slot; `notes` are
    reasons by row. Once `rows [n]` and `propensity [n]` are set, nothing may reorder."""

    ranked: Ranked
    order: Int64
    pinned: Int64
    notes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    rows: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    propensity: Float64 = field(default_factory=lambda: np.empty(0))
    exploration: ExplorationRecord | None = None

    def noted(self, notes: Mapping[int, str]) -> Mapping[int, tuple[str, ...]]:
        return {**self.notes, **{row: (*self.notes.get(row, ()), note) for row, note in notes.items()}}


class Selector(Protocol):
    @property
    def name(self) -> str: ...

    def select(self, context: Context, draft: Draft) -> Draft: ...


class SideEffect(Protocol):
    """Runs behind the answer: it must return at once and bound what it leaves running."""

    @property
    def name(self) -> str: ...

    def after(self, context: Context, ranked: Ranked) -> None: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """The components of a pipeline, in the order in which they run. `backfill` is asked only for short slates."""

    user: UserHydrator
    encoder: Encoder
    sources: Sequence[Source]
    input_source: Source
    backfill: Source
    filters: Sequence[Filter]
    hydrators: Sequence[Hydrator]
    scorer: Scorer
    fallbacks: Sequence[Fallback]
    selectors: Sequence[Selector]
    side_effects: Sequence[SideEffect]
