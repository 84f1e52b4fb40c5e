"""Runs a new model on every usual shape before anyone waits for it: pages it in, seeds its cost model, and proves that
it gives finite numbers."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from services.inference.engine.executor import Executor
from services.inference.engine.request import InferRequest, Int32, Part
from services.inference.engine.runner import ServingModel
from shared.errors import ArtifactError, SilkrecError

T = TypeVar("T")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_REPEATS = 3
_TRIALS = 9
_WORTH_A_THREAD = 0.9
_TIMEOUT_S = 60.0
_COMPILE_S = 600.0
_GRAPH_ROWS, _GRAPH_ROWS_NARROW = 16_384, 65_536
_NARROW = 512
"""Narrower models keep the host busier than an H100 even at 65,536 rows: d 256 with 4 layers gave 12,000 requests a
second in batches of 128 launched kernel by kernel, 27,600 with graphs."""
_USER = "w:warm-up"
_FEW_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Shape:
    """A warm-up batch: requests, and of each its history rows, those of them that are cached, and candidates."""

    requests: int
    rows: int
    candidates: int
    cached: int = 0


# Enough directions to tell the costs apart.
SHAPES = (
    *(Shape(1, 0, 0), Shape(1, 0, 100), Shape(1, 20, 0), Shape(1, 200, 0), Shape(1, 20, 100), Shape(1, 50, 500)),
    *(Shape(1, 200, 200), Shape(1, 200, 500), Shape(1, 200, 200, 198), Shape(1, 200, 20, 200), Shape(1, 50, 100, 50)),
    *(Shape(2, 20, 50), Shape(4, 50, 100), Shape(8, 10, 20), Shape(16, 20, 0), Shape(8, 100, 50, 99)),
)
GPU_SHAPES = (Shape(32, 200, 100), Shape(32, 200, 200, 199), Shape(64, 100, 0), Shape(16, 400, 250, 390))


def usable_cores() -> int:
    """Cores that this process may use at once: its affinity, or less where a cgroup (v2) gives less time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text("ascii").split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def tune_threads(model: ServingModel, executor: Executor) -> int:
    """Torch's intra-op threads that score a usual request fastest, set on the device thread. More is not faster: on 2
    cores a model of d 64 takes 4.1 ms (p50) with one thread and 9.1 ms with two, which wait for each other. Half of the
    cores at most: the machine was idle when this was measured, and the recommender will need the others."""
    parts = [_part(model, np.random.default_rng(0), min(100, model.max_rows), 500)]
    parts = [Part(replace(part.request, user_key=""), part.candidates) for part in parts]  # nothing cached
    best, best_s = 1, float("inf")
    threads = 1
    while threads <= max(1, usable_cores() // 2):
        visit = executor.call(functools.partial(_timed, model, parts, threads))
        seconds = _wait(visit, model)
        if seconds < best_s * _WORTH_A_THREAD:
            best, best_s = threads, seconds
        threads *= 2
    _wait(executor.call(functools.partial(torch.set_num_threads, best)), model)
    return best


def warm(model: ServingModel, executor: Executor) -> None:
    """Raises ArtifactError when the model fails or gives a number that is not finite. Each run is its own visit to the
    device thread, so that requests of the present model wait for one of them at most."""
    _wait(executor.call(functools.partial(tune_attention, model)), model, _COMPILE_S)
    if model.is_gpu:
        _wait(executor.call(functools.partial(model.capture, graph_rows(model))), model, _COMPILE_S)
    for _ in range(2):
        for shape, seed in _shapes(model):
            _wait(executor.call(functools.partial(_visit, model, shape, seed)), model, _COMPILE_S)
        _wait(executor.call(model.cost.settle), model)
    for shape, seed in _shapes(model):
        _wait(executor.call(functools.partial(_visit, model, shape, seed)), model)
    _wait(executor.call(model.cache.reset), model)


def graph_rows(model: ServingModel) -> int:
    """Up to how many rows passes are captured."""
    return _GRAPH_ROWS_NARROW if model.config.d_model <= _NARROW else _GRAPH_ROWS


def tune_attention(model: ServingModel) -> None:
    """How many query rows a request must have before expanding its history's keys is the cheaper way."""
    random = np.random.default_rng(0)
    rows = min(200, model.max_rows)
    best = 0
    for queries in _FEW_QUERIES:
        history = _part(model, random, rows, 0)
        _fill(model, [history])
        asked = [Part(replace(history.request, candidate=_items(model, random, queries)), queries)]
        seconds = []
        for limit in (0, 1 << 30):  # expanded, absorbed
            model.ops.absorb_below = limit
            seconds.append(_median(model, asked))
        if seconds[1] > seconds[0] * _WORTH_A_THREAD:
            break
        best = queries
    model.ops.absorb_below = best + 1
    model.cache.reset()


def _timed(model: ServingModel, parts: list[Part], threads: int) -> float:
    """Median seconds."""
    torch.set_num_threads(threads)
    return _median(model, parts)


def _median(model: ServingModel, parts: list[Part]) -> float:
    seconds = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        model.run(parts)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def _wait(visit: Future[T], model: ServingModel, timeout_s: float = _TIMEOUT_S) -> T:
    try:
        return visit.result(timeout_s)
    except TimeoutError:
        raise ArtifactError(f"model {model.version} did not finish one warm-up batch in {timeout_s:.0f} s") from None


def _visit(model: ServingModel, shape: Shape, seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [_part(model, random, shape.rows, shape.candidates, user) for user in range(shape.requests)]
    try:
        if shape.cached:
            _fill(model, [_head(part, shape.cached) for part in parts])
        load = model.load_of(parts)
        begin = time.perf_counter()
        answers = model.run(parts)
        seconds = time.perf_counter() - begin
        for user in range(shape.requests):
            model.cache.forget(f"{_USER}{user}")
    except SilkrecError:
        raise
    except Exception as error:
        raise ArtifactError(f"model {model.version} failed at warm-up: {error}") from error
    for answer in answers:
        if isinstance(answer, SilkrecError):
            raise ArtifactError(f"model {model.version} gave numbers that are not finite at warm-up; it was not loaded")
    model.cost.observe(load, seconds)


def _shapes(model: ServingModel) -> Iterator[tuple[Shape, int]]:
    """With a seed each."""
    shapes = SHAPES + GPU_SHAPES if model.is_gpu else SHAPES
    for repeat in range(_REPEATS):
        for number, shape in enumerate(shapes):
            if repeat == 0 and shape.requests > 1:
                continue
            rows = min(shape.rows, model.max_rows)
            yield replace(shape, rows=rows, cached=min(shape.cached, rows)), number


def _part(model: ServingModel, random: np.random.Generator, rows: int, candidates: int, user: int = 0) -> Part:
    codes = np.asarray([0, *(code for _, code in model.actions)], np.int8)
    request = InferRequest(
        history_item=_items(model, random, rows),
        history_action=random.choice(codes, rows).astype(np.int8),
        history_time=np.cumsum(random.integers(1, 100_000, rows, dtype=np.int64)),
        candidate=_items(model, random, candidates) if candidates else None,
        request_time_s=2_000_000_000,
        deadline_us=1_000_000,
        user_key=f"{_USER}{user}",
    )
    return Part(request, candidates)


def _head(part: Part, rows: int) -> Part:
    """The same user, `rows` events old."""
    request = part.request
    return Part(
        replace(
            request,
            history_item=request.history_item[:rows],
            history_action=request.history_action[:rows],
            history_time=request.history_time[:rows],
            candidate=None,
        ),
        0,
    )


def _fill(model: ServingModel, parts: list[Part]) -> None:
    """Leaves the histories in the cache."""
    model.run(parts)


def _items(model: ServingModel, random: np.random.Generator, count: int) -> Int32:
    """One more than the vocabulary has: the row of unknown items runs too."""
    return random.integers(0, model.vocabulary + 1, count, dtype=np.int32)
