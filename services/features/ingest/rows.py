"""An event between the API, or a file, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.features.online.store import Addition

Outcome = Literal["accepted", "duplicate", "refused"]
DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class EventRow:
    """Valid already. `action` is a code of the ActionTable; times are microseconds since 1970, UTC."""

    event_id: str
    user_key: str
    item_id: str | None
    action: int
    event_value: float | None
    occurred_at_us: int
    received_at_us: int
    session_id: str | None = None
    recommendation_id: str | None = None
    position: int | None = None
    impression: Sequence[str] | None = None
    properties: Mapping[str, Any] | None = None

    @property
    def occurred_day(self) -> int:
        return self.occurred_at_us // DAY_US


@dataclass(frozen=True, slots=True)
class WriteResult:
    """`outcomes` [n] as the rows were given: `refused` are rows of deleted users. `additions` are what Redis lacks, a
    user each; `marked` those users whose dirty mark is this transaction's own, with the revision it made."""

    outcomes: tuple[Outcome, ...]
    additions: tuple[Addition, ...] = ()
    marked: Mapping[str, int] = field(default_factory=dict)
