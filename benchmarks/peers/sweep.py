"""A short search of each server's settings: one setting after another, the best value kept.

Judged by the rule `SWEEP` of `search.py` on the returning workload, with fresh processes for each choice. A choice must
pass a tenth above the best so far; what does not is told with the rate that it failed at.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.search import SWEEP, Search, find
from benchmarks.peers.servers import Settings, server

Choices = Sequence[tuple[str, Sequence[Any]]]

_BETTER = 1.1
START: dict[str, dict[str, Any]] = {
    "silkrec": {"engines": 2, "dynamic_batching__max_queue_delay_ms": 1, "dynamic_batching__max_batch_ms": 8},
    "litserve": {"workers": 2, "max_batch_size": 8, "batch_timeout_ms": 1, "timeout_ms": 50, "fast_queue": True},
    "bentoml": {"workers": 2, "max_batch_size": 16, "max_latency_ms": 60},
    "pytriton": {"workers": 2, "max_batch_size": 16, "max_queue_delay_ms": 0, "queue_timeout_ms": 45},
}
# The most telling first: what comes later is tried with what was found before.
CHOICES: dict[str, Choices] = {
    "silkrec": (
        ("engines", (1,)),
        ("dynamic_batching__max_batch_ms", (16, 32)),
        ("dynamic_batching__max_queue_delay_ms", (0, 3)),
    ),
    "litserve": (
        ("workers", (1,)),
        ("max_batch_size", (1, 32)),
        ("batch_timeout_ms", (4,)),
        ("fast_queue", (False,)),
        ("timeout_ms", (30_000,)),
    ),
    "bentoml": (("workers", (1,)), ("max_latency_ms", (45, 1000)), ("max_batch_size", (4, 64))),
    "pytriton": (
        ("workers", (1,)),
        ("max_batch_size", (4, 32)),
        ("max_queue_delay_ms", (2,)),
        ("queue_timeout_ms", (0,)),
    ),
}


@dataclass(frozen=True, slots=True)
class Best:
    """`tried`: every choice with its goodput by the sweep's rule."""

    settings: Settings
    goodput: float
    tried: list[dict[str, Any]]


def sweep(kind: str, model: Path, guess: float, end: float) -> Best:
    """Choices that would begin after `end` (time.monotonic) are left out. Raises RuntimeError when the server does not
    start with the first settings."""
    tried: list[dict[str, Any]] = []
    best = dict(START[kind])
    goodput = _try(kind, best, model, Search(SWEEP, guess), end, tried)
    for name, values in CHOICES[kind]:
        for value in values:
            candidate = {**best, name: value}
            if time.monotonic() >= end:
                continue
            least = _BETTER * goodput or guess
            found = _try(kind, candidate, model, Search(SWEEP, least, floor=least), end, tried)
            if found > goodput:
                best, goodput = candidate, found
    return Best(best, goodput, tried)


def _try(kind: str, settings: Settings, model: Path, search: Search, end: float, tried: list[dict[str, Any]]) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="silkrec-bench-") as folder,
        server(kind, settings, Path(folder), model) as running,
    ):
        # The time that a start takes is not the search's: each choice gets at least one trial.
        find([running], [search], "returning", 1000, max(end, time.monotonic() + 1.0))
    failed = None if math.isinf(search.failed) else round(search.failed, 1)
    tried.append({"server": kind, "settings": settings, "goodput": round(search.goodput, 1), "failed_at": failed})
    told = f"{search.goodput:.0f}/s" if search.passed else f"not {failed or search.guess:.0f}/s"
    print(f"  sweep {kind} {settings}: {told}", flush=True)
    return search.goodput
