"""What the engine counts. Plain numbers, so that the engine needs no metrics library; `services/inference/metrics.py`
exports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

OUTCOMES = ("scored", "trimmed", "deadline", "cancelled", "overloaded", "error")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH_ROWS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.068, 0.08, 0.1, 0.25, 1.0)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(slots=True)
class Histogram:
    """`counts` has one more cell than `bounds`, for what lies above the last one. `listener` hears every value."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    listener: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        cell = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[cell] += 1
        self.total += value
        if self.listener is not None:
            self.listener(value)


@dataclass(slots=True)
class CacheCounters:
    """Rows are history events. `stale_rejects`: histories that differed from what was cached before its end."""

    device_hit_rows: int = 0
    host_hit_rows: int = 0
    built_rows: int = 0
    stale_rejects: int = 0
    evictions: int = 0
    host_evictions: int = 0


@dataclass(slots=True)
class EngineCounters:
    """Written by the executor's thread and, for submissions, under its lock; read without a lock, each value whole."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By `OUTCOMES`, one a request."""
    candidates_scored: int = 0
    candidates_unscored: int = 0
    history_rows: int = 0
    cache: CacheCounters = field(default_factory=CacheCounters)
    batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(BATCH_ROWS))
    """History rows computed and candidates, a batch."""
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Of online requests. Lower classes wait for what these leave, which says nothing of the engine."""
    slack_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """What was left of an online request's deadline when its batch began."""
    batch_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    predicted_ratio: Histogram = field(default_factory=lambda: Histogram(RATIOS))
    """Actual over expected time of a batch."""
    oom_splits: int = 0
    """Batches that the device's memory did not hold, and that ran in halves."""
    integrity_faults: int = 0
    batches_retried: int = 0
    late_batches: int = 0
    """Batches that took longer than the cost model's bound."""
    memory_trims: int = 0
    """Times that an idle engine gave unused device memory back."""
    swaps: int = 0
    models_refused: int = 0
