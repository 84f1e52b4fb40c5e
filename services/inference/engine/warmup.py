"""Runs a new model on every usual shape before anyone waits for it: pages it in, seeds its cost model, and proves that
it gives finite numbers."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from services.inference.engine.cost_model import Load
from services.inference.engine.executor import Executor
from services.inference.engine.request import InferRequest, Part
from services.inference.engine.runner import ServingModel
from shared.errors import ArtifactError, SilkrecError

T = TypeVar("T")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_REPEATS = 3
_TRIALS = 9
_WORTH_A_THREAD = 0.9
_TIMEOUT_S = 60.0
# requests, history rows, candidates each: enough directions to tell the five costs apart.
SHAPES = (
    *((1, 0, 0), (1, 0, 100), (1, 20, 0), (1, 200, 0), (1, 20, 100), (1, 50, 500), (1, 200, 200), (1, 200, 500)),
    *((2, 20, 50), (4, 50, 100), (8, 10, 20), (16, 20, 0)),
)


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
    for _ in range(2):
        for parts in _batches(model):
            _wait(executor.call(functools.partial(_visit, model, parts)), model)
        _wait(executor.call(model.cost.settle), model)
    for parts in _batches(model):
        _wait(executor.call(functools.partial(_visit, model, parts)), model)


def _timed(model: ServingModel, parts: list[Part], threads: int) -> float:
    """Median seconds."""
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        model.run(parts)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def _wait(visit: Future[T], model: ServingModel) -> T:
    try:
        return visit.result(_TIMEOUT_S)
    except TimeoutError:
        raise ArtifactError(f"model {model.version} did not finish one warm-up batch in {_TIMEOUT_S:.0f} s") from None


def _visit(model: ServingModel, parts: list[Part]) -> None:
    load = Load()
    for part in parts:
        load = load.plus(len(part.request.history_item), part.candidates)
    begin = time.perf_counter()
    try:
        answers = model.run(parts)
    except SilkrecError:
        raise
    except Exception as error:
        raise ArtifactError(f"model {model.version} failed at warm-up: {error}") from error
    seconds = time.perf_counter() - begin
    for answer in answers:
        if isinstance(answer, SilkrecError):
            raise ArtifactError(f"model {model.version} gave numbers that are not finite at warm-up; it was not loaded")
    model.cost.observe(load, seconds)


def _batches(model: ServingModel) -> Iterator[list[Part]]:
    random = np.random.default_rng(0)
    for repeat in range(_REPEATS):
        for requests, rows, candidates in SHAPES:
            if repeat == 0 and requests > 1:
                continue
            rows = min(rows, model.max_rows)
            yield [_part(model, random, rows, candidates) for _ in range(requests)]


def _part(model: ServingModel, random: np.random.Generator, rows: int, candidates: int) -> Part:
    size = model.loaded.vocabulary + 1  # one more: the row of unknown items runs too
    codes = np.asarray([0, *(code for _, code in model.actions)], np.int8)
    request = InferRequest(
        history_item=random.integers(0, size, rows, dtype=np.int32),
        history_action=random.choice(codes, rows).astype(np.int8),
        history_time=np.cumsum(random.integers(1, 100_000, rows, dtype=np.int64)),
        candidate=random.integers(0, size, candidates, dtype=np.int32) if candidates else None,
        request_time_s=2_000_000_000,
        deadline_us=1_000_000,
    )
    return Part(request, candidates)
