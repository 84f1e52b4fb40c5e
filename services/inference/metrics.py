"""The inference service's metrics, declared once. The engine counts into dataclasses; here they are exported."""

from __future__ import annotations

from collections import Counter

from services.inference.engine.counters import BATCH_SIZES, OUTCOMES, SECONDS
from services.inference.engine.engine import Engine
from shared.observability.metrics import Metrics


class EngineMetrics:
    """`sync` brings what was counted since the last time; histograms are fed as values arise."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("requests_total", "Requests by what became of them", ["outcome"])
        self._candidates = metrics.counter("candidates_total", "Candidates of ranking requests that ran", ["scored"])
        self._rows = metrics.counter("history_rows_total", "History rows that ran")
        self._retries = metrics.counter("batch_retries_total", "Batches that failed and ran again one by one")
        self._late = metrics.counter("late_batches_total", "Batches that took longer than predicted")
        self._swaps = metrics.counter("model_swaps_total", "Models taken into service")
        self._refused = metrics.counter("model_refusals_total", "Models that could not be loaded or warmed")
        self._queue = metrics.gauge("queue_requests", "Requests that wait for the device")
        self._alive = metrics.gauge("engine_alive", "1 while the device's thread runs")
        self._batch_size = metrics.histogram("batch_requests", "Requests of a batch", buckets=BATCH_SIZES)
        self._queue_s = metrics.histogram("queue_duration_seconds", "Wait for the device", buckets=SECONDS)
        self._batch_s = metrics.histogram("batch_duration_seconds", "Time of a batch on the device", buckets=SECONDS)
        self._loaded = metrics.gauge("model_loaded", "1 while a warm model serves")
        self._exported: Counter[str] = Counter()
        for outcome in OUTCOMES:
            self._requests.labels(outcome)  # a rate needs the zero before the first one

    def follow(self, engine: Engine) -> None:
        counters = engine.counters
        counters.batch_size.listener = self._batch_size.observe
        counters.queue_s.listener = self._queue_s.observe
        counters.batch_s.listener = self._batch_s.observe

    def sync(self, engine: Engine) -> None:
        counters = engine.counters
        for outcome, count in list(counters.outcomes.items()):
            self._requests.labels(outcome).inc(self._since(f"outcome {outcome}", count))
        self._candidates.labels("true").inc(self._since("scored", counters.candidates_scored))
        self._candidates.labels("false").inc(self._since("unscored", counters.candidates_unscored))
        self._rows.inc(self._since("rows", counters.history_rows))
        self._retries.inc(self._since("retries", counters.batches_retried))
        self._late.inc(self._since("late", counters.late_batches))
        self._swaps.inc(self._since("swaps", counters.swaps))
        self._refused.inc(self._since("refused", counters.models_refused))
        self._queue.set(engine.queued)
        self._alive.set(engine.alive)
        self._loaded.set(engine.slot.active is not None)

    def _since(self, name: str, now: int) -> int:
        grown = now - self._exported[name]
        self._exported[name] = now
        return grown
