"""Runs the pipeline with a last guard: whatever happens inside, a slate is there before the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from services.recommender.domain import Degradation, Query, Slate
from services.recommender.metrics import SlateMetrics
from services.recommender.serving.admission import Admission
from services.recommender.serving.fallback import popular_slate
from services.recommender.serving.state import StateHolder
from shared.errors import DeadlineExceeded, NothingToServe, Overloaded, SilkrecError
from shared.observability.logging import get_logger

_log = get_logger(__name__)
# Popular from memory (0.3 ms), journal (0.1 ms), JSON of 100 items (0.5 ms) and the socket, with room for a busy core.
# The pipeline itself ends `reserve_ms` (6) before the deadline, so the guard acts only when a stage broke its promise.
GUARD_S = 0.0035


class Pipeline(Protocol):
    async def run(self, query: Query) -> Slate: ...


class SlateServer:
    """`serve` raises NothingToServe when nothing can be shown to anybody; every other failure becomes a slate."""

    def __init__(
        self,
        pipeline: Pipeline,
        holder: StateHolder,
        metrics: SlateMetrics,
        *,
        admission: Admission | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline = pipeline
        self._holder = holder
        self._metrics = metrics
        self.admission = admission or Admission()
        self._clock = clock
        self._overrun: set[asyncio.Task[Slate]] = set()

    async def serve(self, query: Query, *, route: str) -> Slate:
        slate = await self._guarded(query, route)
        if len(slate.items) == 0:
            self._refuse_when_empty()
        self._count(slate, query, route)
        return slate

    def answered(self, deadline: float, *, route: str) -> None:
        """To be called with the answer in hand."""
        if self._clock() > deadline:
            self._metrics.deadline_misses.labels(route).inc()

    async def close(self) -> None:
        """Waits for pipelines that were told to stop."""
        for task in self._overrun:
            task.cancel()
        await asyncio.gather(*self._overrun, return_exceptions=True)

    async def _guarded(self, query: Query, route: str) -> Slate:
        if query.deadline - self._clock() <= GUARD_S:
            return self._popular(query, route, DeadlineExceeded.code)
        if not self.admission.enter():
            return self._popular(query, route, Overloaded.code)
        try:
            return await self._run(query, route)
        finally:
            self.admission.leave()

    async def _run(self, query: Query, route: str) -> Slate:
        task = asyncio.ensure_future(self._pipeline.run(query))
        try:
            await asyncio.wait((task,), timeout=query.deadline - self._clock() - GUARD_S)
        finally:
            if not task.done():
                self._abandon(task)
        if not task.done():
            return self._popular(query, route, DeadlineExceeded.code)
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, SilkrecError):
            _log.warning("the pipeline gave no slate", code=error.code, detail=error.detail)
            return self._popular(query, route, error.code)
        _log.error("the pipeline failed", exc_info=error)
        return self._popular(query, route, "internal")

    def _popular(self, query: Query, route: str, cause: str) -> Slate:
        self._metrics.guarded.labels(route).inc()
        return popular_slate(query, self._holder.current(), cause=cause)

    def _abandon(self, task: asyncio.Task[Slate]) -> None:
        """Told to stop, and kept until it has; what it still raises is of no interest to anybody."""
        self._overrun.add(task)
        task.add_done_callback(self._ended)
        task.cancel()

    def _ended(self, task: asyncio.Task[Slate]) -> None:
        self._overrun.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("an overrun pipeline ended with an error", exc_info=error)

    def _refuse_when_empty(self) -> None:
        """An empty slate is an answer when filters or exclusions made it, not when there is nothing at all."""
        state = self._holder.current()
        if len(state.popular) == 0 and state.catalogue.count == 0:
            raise NothingToServe(
                "there are no items and no events yet; PUT items or send events, then ask again", retry_after_s=2.0
            )

    def _count(self, slate: Slate, query: Query, route: str) -> None:
        metrics = self._metrics
        metrics.slates.labels(route, query.scene, slate.rung).inc()
        metrics.items.labels(route).observe(len(slate.items))
        for stage, took_ms in slate.stage_ms.items():
            metrics.stages.labels(stage).observe(took_ms / 1000)
        for degradation in slate.degraded:
            self.count_degradation(degradation)
        for (stage, _rule), removed in slate.filtered.items():
            metrics.removed.labels(stage).inc(removed)

    def count_degradation(self, degradation: Degradation) -> None:
        self._metrics.degraded.labels(degradation.stage, degradation.cause, degradation.fallback).inc()
