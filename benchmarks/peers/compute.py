"""The forward alone, without any server: what the cache and the fusing are worth before a socket is opened."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.forward import VARIANTS, Forward, forward_of, serve
from benchmarks.peers.workload import WORKLOADS, Trace
from services.inference.engine.request import InferRequest
from services.inference.engine.runner import ServingModel
from services.inference.engine.warmup import tune_attention
from services.inference.model import checkpoint
from services.inference.model.checkpoint import LoadedModel

BATCHES = (1, 4, 16)
_PASSES = 12
_ROUNDS = 3


def compute(model: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and measured. A row is a way, a workload and a batch size: median ms a request, one thread. The ratio is the
    peers' pass (the better variant) at its best batch size over our pass with its cache at its own best."""
    torch.set_num_threads(1)
    loaded = checkpoint.load(model)
    rows, measured = [], {}
    for workload in WORKLOADS:
        best: dict[str, float] = {}
        for batch in BATCHES:
            for way, ms in _measure(loaded, workload, batch).items():
                rows.append({"part": "compute", "workload": workload, "way": way, "batch": batch, "ms_a_request": ms})
                best[way] = min(best.get(way, ms), ms)
        measured[f"compute_ratio_{workload}"] = round(min(best[way] for way in VARIANTS) / best["cached"], 3)
    return rows, measured


def _measure(loaded: LoadedModel, workload: str, batch: int) -> dict[str, float]:
    """Ways take turns batch by batch, each on the same requests."""
    ways: dict[str, Forward] = {variant: forward_of(loaded, variant) for variant in VARIANTS}
    ways["cached"] = cached_forward(loaded)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(_ROUNDS):
        trace = Trace(workload, seed)
        _all(ways["cached"], [ask.infer_request() for ask in trace.primes], 16)
        asks = (ask.infer_request() for ask in trace)
        for _ in range(_PASSES):
            requests = list(itertools.islice(asks, batch))
            for way in random.sample(list(ways), len(ways)):
                begin = time.perf_counter()
                ways[way](requests)
                seconds[way].append(time.perf_counter() - begin)
    return {way: round(float(np.median(found)) * 1e3 / batch, 3) for way, found in seconds.items()}


def cached_forward(loaded: LoadedModel) -> Callable[[Sequence[InferRequest]], list[Any]]:
    """Our serving pass with its latent cache, empty at first."""
    model = ServingModel(loaded, device="cpu", precision="fp32", max_rows=loaded.config.max_history)
    tune_attention(model)
    return lambda requests: serve(model, requests)


def _all(forward: Forward, requests: Sequence[InferRequest], batch: int) -> None:
    for at in range(0, len(requests), batch):
        forward(requests[at : at + batch])
