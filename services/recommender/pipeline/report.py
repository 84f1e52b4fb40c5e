"""What a request cost and gave up, gathered while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from services.recommender.domain import Degradation, Removal
from services.recommender.pipeline.budget import Clock
from shared.contracts.history import Int32
from shared.errors import SilkrecError
from shared.observability.logging import get_logger

DEADLINE = "deadline"
MAX_REMOVALS = 2000
_log = get_logger(__name__)


@dataclass(slots=True)
class Report:
    clock: Clock
    stage_ms: dict[str, float] = field(default_factory=dict)
    degraded: list[Degradation] = field(default_factory=list)
    filtered: dict[tuple[str, str], int] = field(default_factory=dict)
    removed: list[Removal] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = self.clock()
        try:
            yield
        finally:
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + (self.clock() - begin) * 1000

    def gave_up(self, stage: str, cause: str, fallback: str) -> None:
        degradation = Degradation(stage, cause, fallback)
        if degradation not in self.degraded:
            self.degraded.append(degradation)

    def failed(self, stage: str, error: BaseException, fallback: str) -> None:
        self.gave_up(stage, cause_of(error, stage), fallback)

    def take_away(self, stage: str, rule: str, item_index: Int32, *, explain: bool) -> None:
        if len(item_index) == 0:
            return
        self.filtered[stage, rule] = self.filtered.get((stage, rule), 0) + len(item_index)
        if explain:
            room = MAX_REMOVALS - len(self.removed)
            self.removed.extend(Removal(item, stage, rule) for item in np.asarray(item_index[:room]).tolist())


def cause_of(error: BaseException, stage: str) -> str:
    """The error's code, by which metrics and readers tell who is responsible. A bug of ours is `internal`, and logged:
    the slate hides it from the caller, not from us."""
    if isinstance(error, TimeoutError):
        return DEADLINE
    if isinstance(error, SilkrecError):
        return error.code
    _log.error("a stage failed", stage=stage, exc_info=error)
    return "internal"
