"""Metrics of the jobs process, declared once."""

from __future__ import annotations

from collections.abc import Sequence

from services.recommender.jobs.store.jobs import Running
from shared.observability.metrics import Metrics


class JobMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._types: set[str] = set()
        self.running = metrics.gauge("running_jobs", "Jobs that are neither finished nor cancelled", ["job_type"])
        self.last_progress = metrics.gauge(
            "last_progress_timestamp_seconds",
            "When a running job last finished a chunk or began",
            ["job_type"],
        )
        self.due = metrics.gauge("chunks_due", "Chunks that could be worked on now, counted up to the queue's bound")
        self.wakeups = metrics.counter("wakeups_sent_total", "Messages sent to the broker by the sweeper")
        self.worker_starts = metrics.counter("worker_starts_total", "Starts of the worker process")
        self.webhooks = metrics.counter("webhook_deliveries_total", "Webhook calls", ["outcome"])
        self.scheduled = metrics.counter("scheduled_total", "Jobs that a schedule started", ["schedule"])
        self.purged = metrics.counter("purged_rows_total", "Rows removed past their retention", ["table"])

    def show(self, running: Sequence[Running]) -> None:
        """Types that no job is of any more stand at 0."""
        self._types |= {of_type.kind for of_type in running}
        for kind in self._types:
            self.running.labels(kind).set(0)
        for of_type in running:
            self.running.labels(of_type.kind).set(of_type.count)
            self.last_progress.labels(of_type.kind).set(of_type.last_us * 1e-6)
