"""What the analysis tells Prometheus: the faults of each experiment's data, and that they are over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.analysis.follower import AnalysisFollower
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import Alarm, AlarmCode
from services.recommender.metrics import ExperimentMetrics
from shared.errors import NotFound
from shared.observability.metrics import Metrics


class Analysis:
    """Results with given faults by experiment; those of `broken` cannot be built."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Alarm, ...]] = {}
        self.broken = {"broken"}
        self.database = self

    async def run(self, work: Any) -> None:
        work()

    def now_us(self) -> int:
        return 0

    def build(self, registered: Any) -> None:
        if registered.definition.key in self.broken:
            raise NotFound("there is no such metric")

    def faults(self, registered: Any) -> tuple[Alarm, ...]:
        return self.found.get(registered.definition.key, ())


class Lock:
    """A Redis whose key is free, or another process's."""

    free = True

    async def set(self, *_arguments: Any, **_options: Any) -> bool:
        return self.free

    async def delete(self, *_keys: Any) -> None:
        return


MISMATCH = (Alarm(code=AlarmCode.SAMPLE_RATIO_MISMATCH, blocks=True, facts={}),)
SERIES = 'experiment_alarms{code="sample_ratio_mismatch",experiment="button"}'


def follow(analysis: Analysis, lock: Lock) -> Callable[[], str]:
    """Builds once more and gives the metrics; `broken` and `button` run."""
    metrics = Metrics("recommender")
    experiments = [
        SimpleNamespace(
            definition=SimpleNamespace(key=key, status=Status.RUNNING), until_us=None, is_running=lambda _: True
        )
        for key in ("broken", "button")
    ]
    follower = AnalysisFollower(
        cast("Results", analysis),
        cast("Any", lock),
        lambda: cast("list[RegisteredExperiment]", experiments),
        60.0,
        ExperimentMetrics(metrics),
    )

    def shown() -> str:
        asyncio.run(follower.once())
        return metrics.render().decode()

    return shown


def test_a_fault_of_an_experiment_is_shown_until_it_is_over_or_another_process_builds() -> None:
    analysis, lock = Analysis(), Lock()
    shown = follow(analysis, lock)
    assert SERIES not in shown()
    analysis.found["button"] = MISMATCH
    assert f"{SERIES} 1.0" in shown(), "that another one cannot be built hides nothing"
    lock.free = False
    assert f"{SERIES} 0.0" in shown()
    lock.free = True
    assert f"{SERIES} 1.0" in shown()
    analysis.found.clear()
    assert f"{SERIES} 0.0" in shown()


def test_a_fault_is_not_over_because_results_cannot_be_built() -> None:
    analysis = Analysis()
    shown = follow(analysis, Lock())
    analysis.found["button"] = MISMATCH
    assert f"{SERIES} 1.0" in shown()
    analysis.broken.add("button")
    assert f"{SERIES} 1.0" in shown(), "the database died: nobody looked"
    analysis.broken.clear()
    analysis.found.clear()
    assert f"{SERIES} 0.0" in shown()
