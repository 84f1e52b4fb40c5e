"""A model through the whole engine, queue and event loop included: p50 and p99 by batch size, and where time goes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import Shape, parts_of, requests
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferRequest
from services.inference.engine.runner import ServingModel
from services.inference.engine.scheduler import BatchPolicy
from services.inference.engine.tiers import CacheOptions
from services.inference.model.checkpoint import LoadedModel

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128)
REPEATS = 12


def engine_rows(loaded: LoadedModel, shape: Shape, seconds: float) -> list[dict[str, Any]]:
    """`batch` requests are always under way, of users whose histories are cached but for their newest event."""
    policy = BatchPolicy(max_batch_s=1.0, max_queue_delay_s=0.001)
    cache = CacheOptions(host_bytes=-1)
    engine = Engine(EngineOptions(policy=policy, device="cuda", precision="bf16", max_rows=shape.history, cache=cache))
    engine.start()
    rows = []
    try:
        begin = time.perf_counter()
        model = engine.serve(loaded)
        print(f"the engine was warm after {time.perf_counter() - begin:.1f} s", flush=True)
        asked = requests(shape, max(BATCHES), 7)
        for batch in BATCHES:
            latency, done, elapsed = asyncio.run(_closed_loop(engine, asked, batch, seconds))
            p50, p99 = np.percentile(latency, [50, 99])
            row = {
                "who": "silkrec engine",
                "kind": "cached",
                "batch": batch,
                "requests_per_s": round(done / elapsed, 1),
                "p50_ms": round(float(p50) * 1e3, 2),
                "p99_ms": round(float(p99) * 1e3, 2),
                **stages(engine, model, asked[:batch]),
            }
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    finally:
        engine.stop()
    return rows


async def _closed_loop(
    engine: Engine, asked: list[InferRequest], batch: int, seconds: float
) -> tuple[list[float], int, float]:
    latency: list[float] = []
    for request in asked[:batch]:
        await engine.infer(replace(request, candidate=None))
    begin = time.perf_counter()

    async def one(request: InferRequest) -> None:
        while time.perf_counter() < begin + seconds:
            at = time.perf_counter()
            answer = await engine.infer(request)
            if answer.scored is None or not answer.scored.all():
                raise RuntimeError(f"a request was not scored: {answer.reason}")
            latency.append(time.perf_counter() - at)

    await asyncio.gather(*(one(request) for request in asked[:batch]))
    return latency[batch:], len(latency), time.perf_counter() - begin


def stages(engine: Engine, model: ServingModel, asked: list[InferRequest]) -> dict[str, float]:
    """Milliseconds of one batch on an idle device: plan (digests, pages, columns), launch (staging and kernels or a
    graph), device (what the host then waits), land (answers)."""
    parts = parts_of(asked)

    def timed() -> tuple[float, float, float, float]:
        torch.cuda.synchronize()
        t0 = time.perf_counter()
        model._planner.plan(parts, 0.0)
        model.cache.finish()
        t1 = time.perf_counter()
        flight = model.launch(parts)
        t2 = time.perf_counter()
        if flight.copied is not None:
            flight.copied.synchronize()
        t3 = time.perf_counter()
        model.land(flight)
        return t1 - t0, t2 - t1 - (t1 - t0), t3 - t2, time.perf_counter() - t3

    seen = [engine._executor.call(timed).result(60) for _ in range(REPEATS)]
    names = ("plan_ms", "launch_ms", "device_ms", "land_ms")
    return {name: round(float(value) * 1e3, 2) for name, value in zip(names, np.median(seen, axis=0), strict=True)}
