"""A short search of each server's settings: one setting after another, the best value kept.

Judged by the quick rule of `search.py` on the returning workload, with a fresh process for each choice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.search import QUICK, find
from benchmarks.peers.servers import Settings, server

Choices = Sequence[tuple[str, Sequence[Any]]]

START: dict[str, dict[str, Any]] = {
    "silkrec": {
        "engines": 2,
        "dynamic_batching__max_queue_delay_ms": 1,
        "dynamic_batching__max_batch_ms": 8,
    },
    "litserve": {
        "workers": 2,
        "max_batch_size": 8,
        "batch_timeout_ms": 1,
        "timeout_ms": 50,
        "fast_queue": True,
        "forward": "serving",
    },
    "bentoml": {"workers": 2, "max_batch_size": 16, "max_latency_ms": 60, "forward": "serving"},
    "pytriton": {
        "workers": 2,
        "max_batch_size": 16,
        "max_queue_delay_ms": 0,
        "queue_timeout_ms": 45,
        "forward": "serving",
    },
}
# The most telling first: what comes later is tried with what was found before.
CHOICES: dict[str, Choices] = {
    "silkrec": (
        ("engines", (1,)),
        ("dynamic_batching__max_queue_delay_ms", (0, 3)),
        ("dynamic_batching__max_batch_ms", (16,)),
    ),
    "litserve": (
        ("workers", (1,)),
        ("max_batch_size", (1, 32)),
        ("batch_timeout_ms", (4,)),
        ("timeout_ms", (30_000,)),
        ("fast_queue", (False,)),
        ("forward", ("modules",)),
    ),
    "bentoml": (
        ("workers", (1,)),
        ("max_latency_ms", (45, 1000)),
        ("max_batch_size", (4,)),
        ("forward", ("modules",)),
    ),
    "pytriton": (
        ("workers", (1,)),
        ("max_batch_size", (4,)),
        ("max_queue_delay_ms", (2,)),
        ("queue_timeout_ms", (0,)),
        ("forward", ("modules",)),
    ),
}


@dataclass(frozen=True, slots=True)
class Best:
    """`tried`: every choice with its goodput by the quick rule."""

    settings: Settings
    goodput: float
    tried: list[dict[str, Any]]


def sweep(kind: str, model: Path, guess: float) -> Best:
    best, tried = dict(START[kind]), []
    goodput = _goodput(kind, best, model, guess)
    tried.append({"server": kind, "settings": best, "goodput": goodput})
    for name, values in CHOICES[kind]:
        for value in values:
            candidate = {**best, name: value}
            if not _is_legal(kind, candidate):
                continue
            found = _goodput(kind, candidate, model, goodput or guess)
            tried.append({"server": kind, "settings": candidate, "goodput": found})
            if found > goodput:
                best, goodput = candidate, found
    return Best(best, goodput, tried)


def _is_legal(kind: str, settings: Settings) -> bool:
    """LitServe without batches takes no time to collect them."""
    return kind != "litserve" or settings["max_batch_size"] > 1 or settings["batch_timeout_ms"] > 0


def _goodput(kind: str, settings: Settings, model: Path, guess: float) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="silkrec-bench-") as folder,
        server(kind, settings, Path(folder), model) as running,
    ):
        found = find([running], [guess], "returning", QUICK, seed=1000)[0].goodput
    print(f"  sweep {kind} {settings}: {found:.0f}/s", flush=True)
    return found
