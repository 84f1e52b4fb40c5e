"""Metrics of the jobs process and of its workers, declared once."""

from __future__ import annotations

from collections.abc import Sequence

from services.recommender.jobs.leases import ChunkKind
from services.recommender.jobs.store.jobs import Running
from shared.observability.metrics import Metrics

# A chunk aims at jobs.chunk_target_s and is stopped after jobs.soft_limit_s (120 s).
CHUNK_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 160.0)
OUTCOMES = ("succeeded", "waits", "retried", "parked", "lost")
LOOKS = ("chunk", "nothing", "ended_early", "hung")


class ChunkMetrics:
    """Of a worker process. `outcome`: `waits` for a dependency or its next turn, without blame; `retried` and `parked`
    failed; `lost`: somebody else has the chunk, or its job was cancelled."""

    def __init__(self, metrics: Metrics) -> None:
        self.looks = metrics.counter("looks_total", "Messages of the broker, by what was found", ["found"])
        self.started = metrics.counter("chunks_started_total", "Leases taken", ["kind"])
        self.ended = metrics.counter("chunks_total", "Leases by how they ended", ["kind", "outcome"])
        self.seconds = metrics.histogram(
            "chunk_duration_seconds", "From the lease to its end", ["kind"], buckets=CHUNK_BUCKETS_S
        )
        self.users = metrics.counter("users_total", "Users of chunks that were made", ["outcome"])
        self.taken_over = metrics.counter("leases_taken_over_total", "Leases on chunks whose lease before ran out")
        # A rate needs the zero before the first one.
        for kind in ChunkKind:
            self.started.labels(kind.value)
            self.seconds.labels(kind.value)
            for outcome in OUTCOMES:
                self.ended.labels(kind.value, outcome)
        for found in LOOKS:
            self.looks.labels(found)
        for outcome in ("done", "failed"):
            self.users.labels(outcome)


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
        self.queued = metrics.gauge("queue_messages", "Messages that wait in the broker", combined="livemax")
        self.ended_leases = metrics.counter(
            "leases_ended_total", "Leases of this machine's dead workers, ended before they ran out"
        )
        self.settle_failures = metrics.counter(
            "settle_failures_total", "Looks at a job that could not say whether it is over; the log names it"
        )
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
