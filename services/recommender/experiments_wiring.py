"""Puts the experiments' doors together: store, analysis, dashboard. Serving them is wired with everything else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.features.reader import FeatureReader
from services.recommender.experiments import metrics as experiment_metrics
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.analysis.follower import AnalysisFollower
from services.recommender.experiments.dashboard.access.secret import session_secret
from services.recommender.experiments.dashboard.access.sign_in import SignIn
from services.recommender.experiments.dashboard.guard import Dashboard
from services.recommender.experiments.dashboard.joined import JoinedPort
from services.recommender.experiments.dashboard.person import Person
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.store import ExperimentStore
from services.recommender.metrics import ExperimentMetrics
from services.recommender.serving import StateHolder
from shared.actions import ActionTable
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage.database import Database

STATEMENT_TIMEOUT_S = 600.0
"""A build reads a day's events in one statement; requests have their own pool, so nobody waits for it."""


@dataclass(frozen=True, slots=True)
class ExperimentDoors:
    """`state`: what becomes of `request.state`. `follower` None: `recommender.analysis_interval_s` is 0."""

    state: Mapping[str, Any]
    follower: AnalysisFollower | None

    def start(self, tasks: TaskOwner) -> None:
        if self.follower is not None:
            tasks.start("experiment analysis", self.follower.run)

    def status(self) -> Mapping[str, str]:
        return {} if self.follower is None else {"experiment analysis": self.follower.status}


def experiment_doors(
    settings: Settings,
    *,
    database: Database,
    redis: Redis,
    reader: FeatureReader,
    holder: StateHolder,
    stack: contextlib.AsyncExitStack,
    metrics: Metrics,
) -> ExperimentDoors:
    """Raises ValidationFailed for a `metrics.yaml` that cannot be used, ConfigurationError for a state folder without
    room for the dashboard's secret."""
    known = experiment_metrics.load(settings.home / experiment_metrics.FILE)
    actions = ActionTable.from_schema(settings.data)
    store = ExperimentStore(database, settings.data)
    results = Results(database, store, known, actions)
    person = Person(database, reader, lambda: holder.current().catalogue, actions)
    shown = settings.recommender.dashboard
    sign_in = SignIn(shown, session_secret(shown.secret, settings.state))
    state = {
        "experiments": store,
        "results": results,
        "dashboard": Dashboard(JoinedPort(database, store, results, person), sign_in),
    }
    interval_s = settings.recommender.analysis_interval_s
    if not interval_s:
        return ExperimentDoors(state, None)
    patient = settings.database.model_copy(update={"statement_timeout_s": STATEMENT_TIMEOUT_S, "pool_size": 1})
    analysis = Database(settings.database_url(), patient)
    stack.push_async_callback(asyncio.to_thread, analysis.close)
    analysed = ExperimentStore(analysis, settings.data)

    def all_of_them() -> list[RegisteredExperiment]:
        return [stored.registered for stored in analysed.list()]

    analysing = Results(analysis, analysed, known, actions)
    return ExperimentDoors(
        state, AnalysisFollower(analysing, redis, all_of_them, interval_s, ExperimentMetrics(metrics))
    )
