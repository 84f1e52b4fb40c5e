"""An event between the API, or a file, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.features.ingest.marks import Mark
from services.features.online.store import Addition

Outcome = Literal["accepted", "duplicate", "refused"]
DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class EventRow:
    """Valid already. `action` is a code of the ActionTable; times are microseconds since 1970, UTC.

    `sent_day`: the UTC day of occurred_at as the client sent it, where its clock was corrected since. A retry repeats
    it exactly, and event_id is unique by it; the corrected time differs by what the network took.
    """

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
    sent_day: int | None = None

    @property
    def identity(self) -> tuple[str, int]:
        """What is unique: the event_id and its day."""
        return self.event_id, self.day if self.sent_day is None else self.sent_day

    @property
    def day(self) -> int:
        return self.occurred_at_us // DAY_US


@dataclass(frozen=True, slots=True)
class WriteResult:
    """`outcomes` [n] as the rows were given: `refused` are rows of deleted users. `additions` are what Redis lacks, a
    user each; `marks` [same] their dirty marks after this transaction, older ones included."""

    outcomes: tuple[Outcome, ...]
    additions: tuple[Addition, ...] = ()
    marks: tuple[Mark, ...] = ()
