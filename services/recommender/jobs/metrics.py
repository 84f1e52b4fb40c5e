"""Metrics of the jobs process, declared once."""

from __future__ import annotations

from shared.observability.metrics import Metrics


class JobMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.active = metrics.gauge("active", "Jobs under way")
        self.due = metrics.gauge("chunks_due", "Chunks that could be worked on now, counted up to the queue's bound")
        self.wakeups = metrics.counter("wakeups_sent_total", "Messages sent to the broker by the sweeper")
        self.worker_starts = metrics.counter("worker_starts_total", "Starts of the worker process")
        self.webhooks = metrics.counter("webhook_deliveries_total", "Webhook calls", ["outcome"])
        self.scheduled = metrics.counter("scheduled_total", "Jobs that a schedule started", ["schedule"])
        self.purged = metrics.counter("purged_rows_total", "Rows removed past their retention", ["table"])
