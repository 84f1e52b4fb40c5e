"""What the features service counts beside its HTTP requests."""

from __future__ import annotations

from shared.observability.metrics import Metrics

GROUP_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class IngestMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.events = metrics.counter("events_total", "Events after validation, by what became of them", ["outcome"])
        self.refused = metrics.counter("events_refused_total", "Events refused because the queue was full")
        self.queued = metrics.gauge("events_queued", "Events that wait for the next group")
        self.waited = metrics.histogram("event_wait_seconds", "From a request's arrival to the start of its commit")
        self.group_events = metrics.histogram("group_events", "Events of one commit", buckets=GROUP_BUCKETS)
        self.commit = metrics.histogram("commit_duration_seconds", "One group's transaction")


class SweepMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.dirty = metrics.gauge(
            "dirty_users", "Users whose history in Redis is behind, as of the last sweep", combined="livemax"
        )
        self.rebuilt = metrics.counter("histories_rebuilt_total", "Histories written to Redis by the sweeper")
