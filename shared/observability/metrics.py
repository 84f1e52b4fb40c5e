"""A Prometheus registry of one service. Declares `silkrec_<service>_<name>`; base units belong in the name.

With PROMETHEUS_MULTIPROC_DIR set, `render()` merges the files of all processes that share the folder. A process that
started others with such a folder of their own gives it as `children`, and shows theirs behind its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Around the 68 ms deadline the steps are fine enough to read a p99 from.
LATENCY_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.068,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
)
# Of the processes that live: what they have together, or what all of them see alike (a date, a version, a disk).
Combined = Literal["livesum", "livemax"]
_SERVICE = re.compile(r"[a-z][a-z0-9_]*\Z")
# Ids as labels would make one series a user; see the conventions on metrics.
_FORBIDDEN_LABELS = {"user_id", "visitor_id", "user_key", "item_id", "item_index", "request_id", "recommendation_id"}


class Metrics:
    """Declare each metric once and keep the returned object. Safe to build twice in one process (own registry)."""

    def __init__(self, service: str, *, children: Path | None = None) -> None:
        if _SERVICE.match(service) is None:
            raise ValueError(f"a service is named [a-z][a-z0-9_]*, not {service!r}")
        self.service = service
        self.registry = CollectorRegistry()
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._children = children
        if self._folder is None:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:  # noqa: A002
        return Counter(self._name(name), help, self._labels(labels), registry=self.registry)

    def gauge(
        self,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        combined: Combined = "livesum",
    ) -> Gauge:
        """`combined`: across processes."""
        return Gauge(self._name(name), help, self._labels(labels), registry=self.registry, multiprocess_mode=combined)

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> Histogram:
        return Histogram(self._name(name), help, self._labels(labels), registry=self.registry, buckets=buckets)

    def summary(self, name: str, help: str, labels: Sequence[str] = ()) -> Summary:  # noqa: A002
        return Summary(self._name(name), help, self._labels(labels), registry=self.registry)

    def render(self) -> bytes:
        """The exposition text, for `CONTENT_TYPE`."""
        own = generate_latest(self.registry) if self._folder is None else _merged(Path(self._folder))
        if self._children is None or not self._children.is_dir():
            return own
        return own + _merged(self._children)

    def _name(self, name: str) -> str:
        return f"silkrec_{self.service}_{name}"

    @staticmethod
    def _labels(labels: Sequence[str]) -> tuple[str, ...]:
        ids = _FORBIDDEN_LABELS.intersection(labels)
        if ids:
            raise ValueError(f"{', '.join(sorted(ids))} cannot be a label: it has as many values as there are ids")
        return tuple(labels)


def _merged(folder: Path) -> bytes:
    registry = CollectorRegistry()
    _bury(folder)
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _bury(folder: Path) -> None:
    """Gauges of processes that are gone count no more: one that was killed could not take its file along."""
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")}
    for pid in pids:
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
