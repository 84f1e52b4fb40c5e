"""The inference service's metrics, declared once. The engine counts into dataclasses; here they are exported.

What each means, beside Triton's name for it, is the table in docs/metrics.md; a test holds the two together.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from services.inference.engine.counters import BATCH_ROWS, BATCH_SIZES, OUTCOMES, RATIOS, SECONDS
from services.inference.engine.engine import Engine
from services.inference.gpu import GpuUse
from shared.contracts.inference import Upserted
from shared.errors import SilkrecError
from shared.observability.metrics import Metrics


class DoorMetrics:
    """What the doors see, whether or not a request reached the engine. `door`: grpc, rest."""

    def __init__(self, metrics: Metrics) -> None:
        self._request_s = metrics.histogram(
            "request_duration_seconds", "Inference requests from the door to the answer", ["door"]
        )
        self._refused = metrics.counter(
            "refused_requests_total", "Inference requests that were answered with an error", ["door", "code"]
        )
        self._upserted = metrics.counter("upserted_items_total", "New items by what became of them", ["outcome"])
        self._forgotten = metrics.counter("forgotten_rows_total", "History rows dropped because a user was deleted")

    @contextlib.contextmanager
    def request(self, door: str) -> Iterator[None]:
        """Around one inference request. Errors go through."""
        begin = time.monotonic()
        try:
            yield
        except SilkrecError as error:
            self._refused.labels(door, error.code).inc()
            raise
        finally:
            self._request_s.labels(door).observe(time.monotonic() - begin)

    def upserted(self, told: Upserted) -> None:
        for outcome in ("taken", "known", "no_room", "without_tokens"):
            self._upserted.labels(outcome).inc(getattr(told, outcome))

    def forgot(self, rows: int) -> None:
        self._forgotten.inc(rows)


class EngineMetrics:
    """`sync` brings what was counted since the last time; histograms are fed as values arise."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("requests_total", "Requests by what became of them", ["outcome"])
        self._inferences = metrics.counter("inferences_total", "Requests that ran on the device, a batch counts each")
        self._executions = metrics.counter("executions_total", "Batches that ran on the device")
        self._candidates = metrics.counter("candidates_total", "Candidates of ranking requests that ran", ["scored"])
        self._rows = metrics.counter("history_rows_total", "History rows that ran")
        self._retries = metrics.counter("batch_retries_total", "Batches that failed and ran again one by one")
        self._late = metrics.counter("late_batches_total", "Batches that took longer than predicted")
        self._swaps = metrics.counter("model_swaps_total", "Models taken into service")
        self._refused = metrics.counter("model_refusals_total", "Models that could not be loaded or warmed")
        self._queue = metrics.gauge("queue_requests", "Requests that wait for the device")
        self._alive = metrics.gauge("engine_alive", "1 while the device's thread runs")
        self._batch_size = metrics.histogram("batch_requests", "Requests of a batch", buckets=BATCH_SIZES)
        self._queue_s = metrics.histogram(
            "queue_duration_seconds", "Wait for the device, online requests", buckets=SECONDS
        )
        self._batch_s = metrics.histogram("batch_duration_seconds", "Time of a batch on the device", buckets=SECONDS)
        self._batch_rows = metrics.histogram(
            "batch_rows", "History rows computed and candidates of a batch", buckets=BATCH_ROWS
        )
        self._slack_s = metrics.histogram(
            "dispatch_slack_seconds", "Left of an online request's deadline when its batch began", buckets=SECONDS
        )
        self._ratio = metrics.histogram("batch_predicted_ratio", "Actual over expected time of a batch", buckets=RATIOS)
        self._error = metrics.gauge("prediction_error_ratio", "Median relative error of predicted batch times")
        self._hits = metrics.counter("cache_hit_rows_total", "History rows found in the latent cache", ["tier"])
        self._built = metrics.counter("cache_built_rows_total", "History rows computed and kept")
        self._stale = metrics.counter("cache_stale_rejects_total", "Histories that differ from what was cached")
        self._evicted = metrics.counter("cache_evictions_total", "Users pushed out of a tier", ["tier"])
        self._pages = metrics.gauge("cache_pages", "Pages of the latent cache", ["tier", "state"])
        self._users = metrics.gauge("cache_users", "Users in the latent cache")
        self._faults = metrics.counter("cache_integrity_faults_total", "Contradictions found in the latent cache")
        self._splits = metrics.counter("oom_splits_total", "Batches that memory did not hold and that ran in parts")
        self._cap = metrics.gauge("max_batch_requests", "Requests a batch may hold now")
        self._loaded = metrics.gauge("model_loaded", "1 while a warm model serves")
        self._reserved = metrics.gauge("memory_reserved_bytes", "Device memory that torch's allocator holds")
        self._active = metrics.gauge("memory_active_bytes", "Of it, what tensors use")
        self._fragmentation = metrics.gauge("memory_fragmentation_ratio", "Reserved over active", combined="livemax")
        self._trims = metrics.counter("memory_trims_total", "Times that an idle engine gave unused memory back")
        self._gpu = metrics.gauge("gpu_utilisation_ratio", "Time in which a kernel ran on the GPU", combined="livemax")
        self._gpu_used = metrics.gauge("gpu_memory_used_bytes", "Of the whole card", combined="livemax")
        self._gpu_total = metrics.gauge("gpu_memory_total_bytes", "Of the whole card", combined="livemax")
        self._exported: Counter[str] = Counter()
        for outcome in OUTCOMES:
            self._requests.labels(outcome)  # a rate needs the zero before the first one

    def follow(self, engine: Engine) -> None:
        counters = engine.counters
        counters.batch_size.listener = self._batch_size.observe
        counters.queue_s.listener = self._queue_s.observe
        counters.batch_s.listener = self._batch_s.observe
        counters.batch_rows.listener = self._batch_rows.observe
        counters.slack_s.listener = self._slack_s.observe
        counters.predicted_ratio.listener = self._ratio.observe

    def sync(self, engine: Engine) -> None:
        counters = engine.counters
        for outcome, count in list(counters.outcomes.items()):
            self._requests.labels(outcome).inc(self._since(f"outcome {outcome}", count))
        sizes = counters.batch_size
        self._inferences.inc(self._since("inferences", int(sizes.total)))
        self._executions.inc(self._since("executions", sum(sizes.counts)))
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
        self._error.set(engine.prediction_error)
        self._splits.inc(self._since("splits", counters.oom_splits))
        self._faults.inc(self._since("faults", counters.integrity_faults))
        self._cap.set(engine.max_batch_size)
        self._sync_cache(engine)
        self._sync_memory(engine)

    def show(self, gpu: GpuUse) -> None:
        self._gpu.set(gpu.utilisation)
        self._gpu_used.set(gpu.used_bytes)
        self._gpu_total.set(gpu.total_bytes)

    def _sync_memory(self, engine: Engine) -> None:
        memory = engine.memory()
        self._reserved.set(memory.reserved_bytes)
        self._active.set(memory.active_bytes)
        self._fragmentation.set(memory.fragmentation)
        self._trims.inc(self._since("trims", engine.counters.memory_trims))

    def _sync_cache(self, engine: Engine) -> None:
        counted, stats = engine.counters.cache, engine.cache_stats()
        self._hits.labels("device").inc(self._since("device hits", counted.device_hit_rows))
        self._hits.labels("host").inc(self._since("host hits", counted.host_hit_rows))
        self._built.inc(self._since("built", counted.built_rows))
        self._stale.inc(self._since("stale", counted.stale_rejects))
        self._evicted.labels("device").inc(self._since("evictions", counted.evictions))
        self._evicted.labels("host").inc(self._since("host evictions", counted.host_evictions))
        self._users.set(stats.users)
        self._pages.labels("device", "free").set(stats.device_pages_free)
        self._pages.labels("device", "used").set(stats.device_pages - stats.device_pages_free)
        self._pages.labels("host", "free").set(stats.host_pages_free)
        self._pages.labels("host", "used").set(stats.host_pages - stats.host_pages_free)

    def _since(self, name: str, now: int) -> int:
        grown = now - self._exported[name]
        self._exported[name] = now
        return grown
