"""What must hold on a GPU: the CPU's scores, the same with graphs, the same after memory ran out."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace

import numpy as np
import torch

from benchmarks.gpu.compare import rank_correlation
from benchmarks.gpu.shapes import SHAPES, Shape, parts_of, random_model, requests
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferAnswer, InferRequest
from services.inference.engine.runner import ServingModel
from services.inference.engine.scheduler import BatchPolicy
from services.inference.engine.tiers import CacheOptions
from services.inference.model.checkpoint import LoadedModel

USERS = 16
SMALL = CacheOptions(device_bytes=64 << 20, host_bytes=-1)


def run() -> dict[str, float]:
    shape = Shape(SHAPES["s"].config, 200, 64)
    cpu = random_model(shape, "cpu", torch.float32)
    asked = requests(shape, USERS, 1)
    reference = scores(ServingModel(cpu, device="cpu", precision="fp32", max_rows=512), asked)
    found = {}
    for precision in ("fp32", "bf16"):
        model = ServingModel(_on_gpu(cpu), device="cuda", precision=precision, max_rows=512, cache=SMALL)
        cold, cached = scores(model, asked), scores(model, asked)
        model.capture(4096)
        with_graphs = scores(model, asked)
        found[f"trial_{precision}_largest_error"] = float(np.abs(cold - reference).max())
        found[f"trial_{precision}_cached_error"] = float(np.abs(cached - cold).max())
        found[f"trial_{precision}_graph_error"] = float(np.abs(with_graphs - cached).max())
        found[f"trial_{precision}_rank_correlation"] = rank_correlation(cold, reference, shape.candidates)
    found["trial_bf16_flipped_routings"] = flipped(cpu, shape)
    found |= out_of_memory(cpu, shape)
    found |= host_tier(cpu, shape)
    return {name: round(value, 7) for name, value in found.items()}


def scores(model: ServingModel, asked: list[InferRequest]) -> np.ndarray:
    answers = [answer for answer in model.run(parts_of(asked)) if isinstance(answer, InferAnswer)]
    return np.concatenate([answer.scores for answer in answers if answer.scores is not None])


def flipped(cpu: LoadedModel, shape: Shape) -> float:
    """Share of (row, expert) choices of a gate that bf16 activations change, at the gate's own scale of inputs."""
    rows = torch.randn(4096, shape.config.d_model)
    gate = cpu.ranker.gates()[0]
    exact, _ = gate(rows)
    rounded, _ = gate(rows.bfloat16().float())
    kept = (exact[:, :, None] == rounded[:, None, :]).any(-1)
    return float(1.0 - kept.float().mean())


def out_of_memory(cpu: LoadedModel, shape: Shape) -> dict[str, float]:
    """Everything but a little of the card is taken away; a batch that does not fit must still be answered, in parts."""
    options = EngineOptions(
        policy=BatchPolicy(max_batch_s=10.0), device="cuda", precision="fp32", max_rows=512, cache=SMALL
    )
    engine = Engine(options)
    engine.start()
    try:
        model = engine.serve(_on_gpu(cpu))
        model.graphs = None
        asked = requests(replace(shape, candidates=2000), 96, 5)
        before = asyncio.run(_all(engine, asked))
        asyncio.run(_forget(engine, asked))
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(max(0, free - (700 << 20)), dtype=torch.uint8, device="cuda")
        after = asyncio.run(_all(engine, asked))
        del taken
        worst = max(float(np.abs(x - y).max()) for x, y in zip(before, after, strict=True))
        return {
            "trial_oom_splits": float(engine.counters.oom_splits),
            "trial_oom_unanswered": float(len(asked) - len(after)),
            "trial_oom_largest_error": worst,
        }
    finally:
        engine.stop()


async def _all(engine: Engine, asked: list[InferRequest]) -> list[np.ndarray]:
    answers = await asyncio.gather(*(engine.infer(replace(request, deadline_us=60_000_000)) for request in asked))
    return [answer.scores for answer in answers if answer.scores is not None and answer.scored is not None]


async def _forget(engine: Engine, asked: list[InferRequest]) -> None:
    for request in asked:
        await engine.forget(request.user_key)


def host_tier(cpu: LoadedModel, shape: Shape) -> dict[str, float]:
    """Users who were pushed down to the host and came back score as before."""
    options = CacheOptions(device_bytes=3 << 20, host_bytes=64 << 20)
    model = ServingModel(_on_gpu(cpu), device="cuda", precision="fp32", max_rows=512, cache=options)
    first = requests(shape, 2, 1)
    before = scores(model, first)
    for seed in range(20, 40):
        scores(model, requests(shape, 2, seed))
    after = scores(model, first)
    return {
        "trial_host_hit_rows": float(model.cache.counters.host_hit_rows),
        "trial_host_error": float(np.abs(after - before).max()),
        "trial_integrity_faults": float(len(model.cache.check_integrity())),
    }


def _on_gpu(cpu: LoadedModel) -> LoadedModel:
    return replace(cpu, ranker=copy.deepcopy(cpu.ranker).to("cuda"))
