"""The recommender's own metrics, declared once. HTTP totals and durations are the web layer's."""

from __future__ import annotations

from shared.observability.metrics import Metrics

# A stage takes microseconds to a few tens of milliseconds.
STAGE_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.068, 0.1, 0.25)
SLATE_BUCKETS = (0, 1, 2, 5, 10, 20, 50, 100)


class SlateMetrics:
    """What requests cost and gave up."""

    def __init__(self, metrics: Metrics) -> None:
        self.deadline_misses = metrics.counter(
            "deadline_misses_total", "Answers handed over after their deadline", ["route"]
        )
        self.guarded = metrics.counter(
            "guard_answers_total", "Answers that the last guard gave because the pipeline overran", ["route"]
        )
        self.degraded = metrics.counter(
            "degraded_stages_total", "Stages that gave something up", ["stage", "cause", "fallback"]
        )
        self.slates = metrics.counter("slates_total", "Slates answered", ["route", "scene", "rung"])
        self.items = metrics.histogram("slate_items", "Items of a slate", ["route"], buckets=SLATE_BUCKETS)
        self.stages = metrics.histogram(
            "stage_duration_seconds", "Wall time of a stage", ["stage"], buckets=STAGE_BUCKETS_S
        )
        self.removed = metrics.counter("candidates_removed_total", "Candidates that a filter took away", ["stage"])


class JournalMetrics:
    """The journal of served slates: what waits, and what was lost."""

    def __init__(self, metrics: Metrics) -> None:
        self.written = metrics.counter("journal_slates_written_total", "Slates handed to the operating system")
        self.lost = metrics.counter("journal_slates_lost_total", "Slates that no journal holds", ["cause"])
        self.late = metrics.counter("journal_slates_late_total", "Slates answered before their write was confirmed")
        self.drained = metrics.counter("journal_slates_drained_total", "Slates that the database holds")
        self.skipped = metrics.counter(
            "journal_slates_skipped_total", "Slates not put into the database on purpose", ["cause"]
        )
        self.waiting = metrics.gauge("journal_slates_waiting", "Slates that the database does not hold yet")
        self.kept = metrics.gauge(
            "journal_segments_kept",
            "Segments of dead processes that wait for a release that can read them",
            combined="livemax",
        )
        self.drain_failures = metrics.counter("journal_drain_failures_total", "Drains that failed", ["cause"])


class ServingMetrics:
    """What is being served."""

    def __init__(self, metrics: Metrics) -> None:
        self.swaps = metrics.counter("release_swaps_total", "Releases taken into service")
        self.refused = metrics.counter("release_refusals_total", "Releases that could not be opened", ["cause"])
        self.refresh_failures = metrics.counter("refresh_failures_total", "Background refreshes that failed", ["what"])
        self.catalogue_items = metrics.gauge("catalogue_items", "Items in memory", combined="livemax")
        self.catalogue_revision = metrics.gauge(
            "catalogue_revision", "Highest item revision in memory", combined="livemax"
        )
        self.popular_items = metrics.gauge("popular_items", "Items of the popular table", combined="livemax")
        self.waiting = metrics.counter(
            "experiment_requests_left_out_total",
            "Requests that an experiment left out because a variant's release is not loaded",
            ["experiment"],
        )
        self.index_items = metrics.gauge("index_items", "Items of the open index", combined="livemax")
        self.has_model = metrics.gauge(
            "release_has_model", "1 while the release in service names a model", combined="livemax"
        )
        self.index_created = metrics.gauge(
            "index_created_timestamp_seconds", "When the open index was built; 0 without one", combined="livemax"
        )


class ExperimentMetrics:
    """What is wrong with the data of experiments that run. Keys of experiments are few: they are named by people."""

    def __init__(self, metrics: Metrics) -> None:
        self._alarms = metrics.gauge(
            "experiment_alarms", "1 while an experiment's data has this fault", ["experiment", "code"], "livemax"
        )
        self._shown: set[tuple[str, str]] = set()

    def show(self, found: set[tuple[str, str]]) -> None:
        """(experiment, code); what was shown before and is not among them is over. Series are set to 0 and not removed,
        which several processes in one folder could not do."""
        for gone in self._shown - found:
            self._alarms.labels(*gone).set(0)
        for now in found:
            self._alarms.labels(*now).set(1)
        self._shown |= found
