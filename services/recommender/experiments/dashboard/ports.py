"""What the pages need of the suite. Wiring joins it to the registry and the analysis; the tests to a fake.

Every method may raise DatabaseUnavailable; those with a `key` raise NotFound. `actor` names who did it in the audit
log, such as `key:ops`, `proxy:ann@example.com` or `local`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import Health, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRow:
    """One line of the list. `units`: exposed in the present phase; `as_of_us` as in Report."""

    experiment: RegisteredExperiment
    health: Health
    units: int
    simulated: bool
    as_of_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """`action`: create, start, stop, ship, roll_back, kill_variant…; `detail` is JSON."""

    at_us: int
    actor: str
    action: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChoice:
    """One of the metrics file, for the create form."""

    metric: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEvent:
    occurred_at_us: int
    item_id: str
    title: str | None
    event_type: str
    event_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlateRow:
    """`sources`: every source that proposed the item; `scores` {action: probability}."""

    position: int
    item_id: str
    title: str | None
    score: float | None
    sources: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    propensity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotShown:
    """Why not: the stage and the rule that took the item away."""

    item_id: str
    title: str | None
    stage: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPage:
    """A user's newest served slate and what led to it. `experiments` {key: variant}; `source_counts` {source:
    items of the slate}; `degraded`: (stage, cause, fallback)."""

    user_id: str
    history: tuple[HistoryEvent, ...]
    slate: tuple[SlateRow, ...]
    not_shown: tuple[NotShown, ...]
    recommendation_id: str | None = None
    served_at_us: int | None = None
    scene: str | None = None
    release: str | None = None
    took_ms: float | None = None
    simulated: bool = False
    experiments: Mapping[str, str] = field(default_factory=dict)
    source_counts: Mapping[str, int] = field(default_factory=dict)
    degraded: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPhase:
    """`weights` one a variant; `seed` None: the one there is."""

    weights: tuple[float, ...]
    coverage: float
    seed: str | None = None
    keep_out_earlier: bool = False


class DashboardPort(Protocol):
    async def list(self) -> Sequence[ExperimentRow]:
        """Newest first."""

    async def get(self, key: str) -> RegisteredExperiment: ...

    async def report(self, key: str) -> Report:
        """Of the present phase."""

    async def audit(self, key: str) -> Sequence[AuditEntry]:
        """Newest first."""

    async def create(self, experiment: RegisteredExperiment, actor: str) -> RegisteredExperiment:
        """A draft. Raises ValidationFailed with pointers into the document, Conflict for a key in use."""

    async def edit(self, key: str, experiment: RegisteredExperiment, actor: str) -> None:
        """A draft. Raises ValidationFailed as `create`, Conflict for what is none any more."""

    async def start(self, key: str, actor: str) -> None:
        """Raises Conflict where its status does not allow it; so do all below."""

    async def stop(self, key: str, actor: str) -> None: ...

    async def ship(self, key: str, variant: str, actor: str) -> None:
        """The variant's settings become everybody's."""

    async def roll_back(self, key: str, actor: str) -> None:
        """Takes back what was shipped."""

    async def kill_variant(self, key: str, variant: str, actor: str) -> None: ...

    async def new_phase(self, key: str, phase: NewPhase, actor: str) -> None:
        """Raises ValidationFailed too."""

    async def waiting(self, experiment: RegisteredExperiment) -> str | None:
        """Why the recommender behind this page leaves everybody out for now: releases of variants that it cannot serve
        yet. None: it does not."""

    async def metrics(self) -> Sequence[MetricChoice]: ...

    async def user(self, user_id: str) -> UserPage:
        """Raises NotFound for an id that no store knows."""
