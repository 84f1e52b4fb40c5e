"""The engine's own GPU metrics while it works hard, works little, and rests: what alerts on them are tried with.

    python -m benchmarks.gpu_metrics [--shape m] [--json tests/data/gpu_metrics.json]     (other shapes in it stay)

An engine with random weights (benchmarks/gpu/shapes.py, bf16, a latent cache of 256 MiB) and the very code that exports
its metrics: `EngineMetrics`, `Gpu` (NVML) and the trim of an engine that has nothing to do. A sample each 5 s of four
phases: 64 clients without a pause, a request each 0.1 s, nobody, and 64 clients again, who meet the trimmed allocator.
The `p99_ms` of each busy phase says what the trim cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
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

EVERY_S = 5
CLIENTS = 64
TAKEN = (
    "gpu_utilisation_ratio",
    "gpu_memory_used_bytes",
    "gpu_memory_total_bytes",
    "memory_reserved_bytes",
    "memory_active_bytes",
    "memory_fragmentation_ratio",
    "memory_trims_total",
)
PHASES = (("64 clients without a pause", 60.0, 0.0), ("a request each 0.1 s", 30.0, 0.1), ("nobody", 60.0, None),
          ("64 clients after the rest", 30.0, 0.0))  # fmt: skip


class Recorder:
    """A scrape, as the service's /metrics would answer it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._registry = engine, Metrics("inference")
        self._metrics, self._gpu = EngineMetrics(self._registry), Gpu(engine.device_uuid)

    def sample(self) -> dict[str, float]:
        self._metrics.sync(self._engine)
        self._metrics.show(self._gpu.use())
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self._registry.render().decode()):
            for one in family.samples:
                name = one.name.removeprefix("silkrec_inference_")
                if name in TAKEN:
                    found[name] = round(one.value, 4)
        return found


async def phase(
    engine: Engine, recorder: Recorder, asked: list[InferRequest], seconds: float, pause_s: float | None
) -> tuple[list[dict[str, float]], list[float]]:
    """(samples, latencies in s). `pause_s` 0: all clients at once, None: nobody asks."""
    end, latency, samples = time.perf_counter() + seconds, [], []

    async def client(request: InferRequest) -> None:
        while time.perf_counter() < end:
            at = time.perf_counter()
            await engine.infer(request)
            latency.append(time.perf_counter() - at)
            if pause_s:
                await asyncio.sleep(pause_s)

    async def record() -> None:
        while time.perf_counter() < end:
            await asyncio.sleep(EVERY_S)
            samples.append(await asyncio.to_thread(recorder.sample))

    clients = () if pause_s is None else asked[:1] if pause_s else asked
    await asyncio.gather(record(), *(client(request) for request in clients))
    return samples, latency


async def record(engine: Engine, asked: list[InferRequest], name: str) -> dict[str, Any]:
    recorder = Recorder(engine)
    phases, waited = {}, {}
    for title, seconds, pause_s in PHASES:
        samples, latency = await phase(engine, recorder, asked, seconds, pause_s)
        phases[f"{name}: {title}"] = samples
        if latency:
            p50, p99 = np.percentile(np.array(latency) * 1e3, [50, 99])
            waited[f"{name}: {title}"] = {
                "p50_ms": round(float(p50), 2),
                "p99_ms": round(float(p99), 2),
                "max_ms": round(max(latency) * 1e3, 1),
            }
        print(title, samples[-1] if samples else "", waited.get(f"{name}: {title}", ""), flush=True)
    return {"phases": phases, "latencies": waited}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="m")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    engine = Engine(
        EngineOptions(
            policy=BatchPolicy(max_batch_s=1.0),
            device="cuda",
            precision="bf16",
            max_rows=shape.history,
            cache=CacheOptions(device_bytes=256 << 20, host_bytes=-1),
        )
    )
    engine.start()
    try:
        engine.serve(random_model(shape, "cuda", torch.bfloat16))
        found = asyncio.run(record(engine, requests(shape, CLIENTS, 7), options.shape))
    finally:
        engine.stop()
    result = {
        "about": "bf16, random weights, a latent cache of 256 MiB; made by python -m benchmarks.gpu_metrics",
        "machine": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "recorded": datetime.now(UTC).date().isoformat(),
        "every_s": EVERY_S,
        **found,
    }
    if options.json is not None:
        if options.json.exists():
            before = json.loads(options.json.read_text("utf-8"))
            for part in ("phases", "latencies"):
                result[part] = {**before.get(part, {}), **found[part]}
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
