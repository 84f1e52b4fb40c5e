"""Results of an experiment by its key: what routes, pages and commands ask, and the build that goes before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.recommender.experiments.analysis.build import Built, build
from services.recommender.experiments.analysis.results import faults, report
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.store import StoredExperiment
from services.recommender.experiments.report import Alarm, Report
from shared.actions import ActionTable
from shared.storage.database import Database


class Registry(Protocol):
    """`registry.store.ExperimentStore`."""

    def get(self, key: str) -> StoredExperiment: ...


@dataclass(frozen=True, slots=True)
class Results:
    """`known` are the metrics that a plan may name. Blocking. Raises NotFound, ValidationFailed and
    DatabaseUnavailable."""

    database: Database
    registry: Registry
    known: Mapping[str, Metric]
    actions: ActionTable
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000

    def of(self, key: str) -> Report:
        return self.of_registered(self.registry.get(key).registered)

    def of_registered(self, registered: RegisteredExperiment) -> Report:
        return report(self.database, registered, self.now_us(), known=self.known, actions=self.actions)

    def faults(self, registered: RegisteredExperiment) -> tuple[Alarm, ...]:
        return faults(self.database, registered, self.now_us(), known=self.known, actions=self.actions)

    def build(self, registered: RegisteredExperiment) -> Built:
        return build(self.database, registered, self.now_us(), known=self.known, actions=self.actions)
