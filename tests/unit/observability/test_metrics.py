from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.observability.metrics import Metrics


def test_names_carry_the_suite_and_the_service() -> None:
    metrics = Metrics("features")
    metrics.counter("events_total", "Events", ["result"]).labels("accepted").inc(3)
    metrics.gauge("queue_events", "Queue").set(2)
    metrics.histogram("commit_duration_seconds", "Commit").observe(0.004)
    metrics.summary("batch_events", "Batch").observe(7)
    text = metrics.render().decode()
    assert 'silkrec_features_events_total{result="accepted"} 3.0' in text
    assert "silkrec_features_queue_events 2.0" in text
    assert 'silkrec_features_commit_duration_seconds_bucket{le="0.005"} 1.0' in text
    assert "silkrec_features_batch_events_sum 7.0" in text
    assert "process_cpu_seconds_total" in text


def test_two_registries_of_one_service_do_not_collide() -> None:
    first, second = Metrics("features"), Metrics("features")
    first.counter("events_total", "Events").inc()
    second.counter("events_total", "Events")
    assert "silkrec_features_events_total 0.0" in second.render().decode()


@pytest.mark.parametrize("label", ["user_id", "item_id", "user_key"])
def test_an_id_cannot_become_a_label(label: str) -> None:
    with pytest.raises(ValueError, match=label):
        Metrics("features").counter("events_total", "Events", [label])


def test_a_service_name_that_prometheus_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="my-service"):
        Metrics("my-service")


def test_with_a_multiprocess_folder_the_values_of_all_processes_are_added(tmp_path: Path) -> None:
    program = (
        "import sys; from shared.observability.metrics import Metrics\n"
        "m = Metrics('features'); m.counter('events_total', 'Events').inc(2); sys.stdout.buffer.write(m.render())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for expected in ("2.0", "4.0"):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=True
        )
        assert f"silkrec_features_events_total {expected}" in done.stdout.decode()


def test_a_process_that_was_killed_takes_its_gauges_along_and_leaves_its_counts(tmp_path: Path) -> None:
    program = (
        "import sys; from shared.observability.metrics import Metrics\n"
        "m = Metrics('features'); m.gauge('queue_events', 'Queue').set(7); m.counter('events_total', 'Events').inc(3)\n"
        "sys.stdout.buffer.write(m.render()); sys.stdout.flush(); sys.stdin.readline()"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    first = start()
    assert first.stdout is not None
    while not (line := first.stdout.readline()).startswith("silkrec_features_queue_events "):
        assert line, "it ended before it said anything"
    first.kill()
    first.communicate()
    text, _ = start().communicate("\n", timeout=60)
    assert "silkrec_features_queue_events 7.0" in text
    assert "silkrec_features_events_total 6.0" in text


def test_children_with_a_folder_of_their_own_are_shown_behind_their_parent(tmp_path: Path) -> None:
    program = "from shared.observability.metrics import Metrics; Metrics('worker').counter('done_total', 'Done').inc(2)"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    metrics = Metrics("jobs", children=tmp_path)
    metrics.counter("sent_total", "Sent").inc()
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, check=True)
    text = metrics.render().decode()
    assert "silkrec_jobs_sent_total 1.0" in text
    assert "silkrec_worker_done_total 4.0" in text
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)), "no metric is there twice"


def test_children_that_have_not_begun_are_no_error(tmp_path: Path) -> None:
    assert b"silkrec" not in Metrics("jobs", children=tmp_path / "not yet").render()
