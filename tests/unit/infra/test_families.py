"""Every service says six things about itself, and its latencies can be read between 1 and 100 ms."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from services.alerts.metrics import DeliveryMetrics
from services.features.metrics import IngestMetrics
from services.inference.metrics import DoorMetrics, EngineMetrics
from services.recommender.metrics import SlateMetrics
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.web.middleware import RequestMetrics
from tests.unit.infra.declared import declared

SERVICES = ("recommender", "features", "inference")
OF_ALL = {
    "latency": ("http_request_duration_seconds_bucket",),
    "throughput": ("http_requests_total",),
    "resources": ("cpu_seconds_total", "resident_memory_bytes", "state_free_bytes", "pool_in_use", "pool_limit"),
    "errors": ("http_requests_total", "background_deaths_total"),
    "queue": ("http_requests_in_progress", "event_loop_delay_seconds_bucket", "pool_waiting"),
}
OF_ONE = {
    "recommender": (
        "stage_duration_seconds_bucket", "slates_total", "degraded_stages_total", "deadline_misses_total",
        "slate_items_bucket", "journal_slates_waiting",
    ),
    "features": (
        "commit_duration_seconds_bucket", "events_total", "events_refused_total", "group_events_bucket",
        "events_queued", "event_wait_seconds_bucket",
    ),
    "inference": (
        "request_duration_seconds_bucket", "inferences_total", "requests_total", "refused_requests_total",
        "batch_requests_bucket", "batch_rows_bucket", "queue_requests", "queue_duration_seconds_bucket",
        "gpu_utilisation_ratio", "gpu_memory_used_bytes", "memory_fragmentation_ratio", "memory_trims_total",
    ),
}  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_declares_all_families(service: str) -> None:
    wanted = [*(name for names in OF_ALL.values() for name in names), *OF_ONE[service]]
    missing = [name for name in wanted if f"silkrec_{service}_{name}" not in declared()]
    assert not missing


def test_latencies_can_be_read_between_1_and_100_ms(tmp_path: Path) -> None:
    metrics = Metrics("all")
    for declare in (RequestMetrics, IngestMetrics, SlateMetrics, DoorMetrics, EngineMetrics):
        declare(metrics)
    ResourceMetrics(metrics, state=tmp_path, pools={})
    DeliveryMetrics(metrics, ())
    bounds: dict[str, list[float]] = {}
    for collector in set(metrics.registry._names_to_collectors.values()):
        name = getattr(collector, "_name", "")
        if name.endswith("_seconds") and hasattr(collector, "_upper_bounds"):
            bounds[name] = [bound for bound in collector._upper_bounds if 0.001 <= bound <= 0.1]
    assert len(bounds) >= 9
    for name, inside in bounds.items():
        assert inside[0] == 0.001, name
        assert inside[-1] == 0.1, name
        widest = max(above / below for below, above in itertools.pairwise(inside))
        assert widest <= 2.5, f"{name} has a step of {widest}"
