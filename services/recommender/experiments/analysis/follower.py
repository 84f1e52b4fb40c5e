"""Keeps the aggregates of what runs no older than a minute: a background task of the recommender.

Several recommenders may try at once; a key in Redis lets one of them. When Redis is away all build: a day built twice
is the same day, so the key saves work and guards nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.recommender.experiments.analysis.build import FINAL_AFTER_US
from services.recommender.experiments.analysis.desk import Results
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.metrics import ExperimentMetrics
from shared.errors import SilkrecError
from shared.observability.logging import get_logger

_log = get_logger(__name__)
LOCK = "silkrec:exp1:build"
LOCK_TTL_S = 300
"""A process that dies while it builds holds the others up for so long."""
AFTER_STOP_US = FINAL_AFTER_US
"""The last exposures of one that is over may still lie in a journal; after two days nothing changes any more."""


@dataclass(slots=True)
class AnalysisFollower:
    """`experiments` lists all, blocking. The database of `results` is one whose statements may take minutes. `status`:
    for /ready."""

    results: Results
    redis: Redis
    experiments: Callable[[], list[RegisteredExperiment]]
    interval_s: float
    metrics: ExperimentMetrics
    status: str = "starting"
    _failed: set[str] = field(default_factory=set)
    _wrong: set[tuple[str, str]] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            await self.once()
            await asyncio.sleep(self.interval_s)

    async def once(self) -> None:
        if not await self._may_build():
            self.status = "ok: another process builds"
            self._wrong = set()
            self.metrics.show(self._wrong)  # and says what is wrong
            return
        try:
            await self.results.database.run(self._build_all)
        except SilkrecError as error:
            self.status = f"cannot read experiments: {error.detail}"
        else:
            self.status = f"no results for {', '.join(sorted(self._failed))}" if self._failed else "ok"
        finally:
            await self._release()

    def _build_all(self) -> None:
        now_us = self.results.now_us()
        wanted = [one for one in self.experiments() if _is_due(one, now_us)]
        wrong: set[tuple[str, str]] = set()
        for registered in wanted:
            key = registered.definition.key
            try:
                self.results.build(registered)
                wrong |= {(key, alarm.code.value) for alarm in self.results.faults(registered)}
            except SilkrecError as error:
                # One experiment with a metric that is gone must not hold up the others.
                if key not in self._failed:
                    _log.error("an experiment's results cannot be built", experiment=key, detail=error.detail)
                self._failed.add(key)
                # Nobody looked, so nobody knows that it is over: a database that dies must not resolve an alert.
                wrong |= {known for known in self._wrong if known[0] == key}
            else:
                self._failed.discard(key)
        self._wrong = wrong
        self.metrics.show(wrong)

    async def _may_build(self) -> bool:
        try:
            return bool(await self.redis.set(LOCK, b"1", nx=True, ex=LOCK_TTL_S))
        except (RedisError, OSError, TimeoutError):
            return True

    async def _release(self) -> None:
        try:
            await self.redis.delete(LOCK)
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("the key of the analysis stays until its time is over", detail=str(error))


def _is_due(registered: RegisteredExperiment, now_us: int) -> bool:
    until_us = registered.until_us
    return registered.is_running(now_us) or (until_us is not None and 0 <= now_us - until_us < AFTER_STOP_US)
