"""Records what the engine's GPU metrics say under load, under a trickle and idle: what the GPU alerts are tried on.

    python -m benchmarks.gpu.record_metrics --json tests/data/gpu_metrics.json

Needs a GPU, and prometheus-client, structlog, orjson, pydantic and nvidia-ml-py beside torch. Four minutes on an H100.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu.shapes import SHAPES, random_model, requests
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferRequest
from services.inference.engine.scheduler import BatchPolicy
from services.inference.engine.tiers import CacheOptions
from services.inference.gpu import Gpu
from services.inference.metrics import EngineMetrics
from shared.observability.metrics import Metrics

SHAPE = "m"
CLIENTS = 64
# Beside a cache of this size the activations of a large batch are most of what the allocator holds.
CACHE_BYTES = 256 << 20
PHASES = {"busy": 150.0, "trickle": 60.0, "idle": 20.0}
TRICKLE_S = 0.1
KEPT = ("gpu_", "memory_", "queue_requests")


class Recorder:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._metrics = Metrics("inference")
        self._exported = EngineMetrics(self._metrics)
        self._exported.follow(engine)
        self._gpu = Gpu(engine.device_uuid)

    async def during(self, seconds: float, every_s: float, work: Callable[[float], Awaitable[None]]) -> list[Any]:
        """A sample each `every_s` while `work(until)` runs."""
        until = time.perf_counter() + seconds
        running = asyncio.ensure_future(work(until))
        rows = []
        while time.perf_counter() < until:
            await asyncio.sleep(every_s)
            self._exported.sync(self._engine)
            self._exported.show(await asyncio.to_thread(self._gpu.use))
            rows.append(self._sample())
        await running
        return rows

    def _sample(self) -> dict[str, float]:
        families = text_string_to_metric_families(self._metrics.render().decode())
        samples = {sample.name: sample.value for family in families for sample in family.samples}
        ours = {name.removeprefix("silkrec_inference_"): value for name, value in samples.items()}
        return {name: value for name, value in ours.items() if name.startswith(KEPT) and not name.endswith("_created")}


async def record(engine: Engine, every_s: float) -> dict[str, Any]:
    asked = requests(SHAPES[SHAPE], CLIENTS, 7)

    async def busy(until: float) -> None:
        async def one(request: InferRequest) -> None:
            while time.perf_counter() < until:
                await engine.infer(request)

        await asyncio.gather(*(one(request) for request in asked))

    async def trickle(until: float) -> None:
        while time.perf_counter() < until:
            await engine.infer(asked[0])
            await asyncio.sleep(TRICKLE_S)

    async def idle(_until: float) -> None:
        return

    recorder, work = Recorder(engine), {"busy": busy, "trickle": trickle, "idle": idle}
    phases = {}
    for name, seconds in PHASES.items():
        phases[name] = await recorder.during(seconds, every_s, work[name])
        print(name, phases[name][0], phases[name][-1], flush=True)
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--every-s", type=float, default=5.0)
    arguments = parser.parse_args()
    shape = SHAPES[SHAPE]
    cache = CacheOptions(device_bytes=CACHE_BYTES, host_bytes=-1)
    options = EngineOptions(
        policy=BatchPolicy(max_batch_s=1.0), device="cuda", precision="bf16", max_rows=shape.history, cache=cache
    )
    engine = Engine(options)
    engine.start()
    try:
        engine.serve(random_model(shape, engine.device, torch.bfloat16))
        phases = asyncio.run(record(engine, arguments.every_s))
    finally:
        engine.stop()
    told = {"machine": torch.cuda.get_device_name(), "torch": torch.__version__, "every_s": arguments.every_s}
    arguments.json.write_text(json.dumps({**told, "phases": phases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
