"""Our engine on one GPU beside transformers' DeepSeek-V2 with the same weights, in one run a shape.

    python -m benchmarks.engine_gpu SHAPE [--json FILE] [--batches 2 4 8 …] [--seconds 1.5]      (s, m, lite)

Both get host tensors and give host scores; bf16; the outputs are compared. Every request has 512 history events and
256 candidates (Lite: 100). `cached`: the histories are held, ours in latent pages, transformers' in a DynamicCache.
`cold`: nothing is held; ours sees every user for the first time and writes its latents, transformers computes history
and candidates in one masked pass. For each batch size requests a second and the time a batch took, from the moment it
was handed over to the scores on the host; ours are handed over as the engine does it, the next one a little before the
device is free. A ratio is that of the best batch sizes whose p99 stays inside 68 ms; `ratio_…` is against
transformers' masked pass, the way to serve it that keeps nothing between requests, `ratio_cached_…_held` against its
DynamicCache filled beforehand and never moved, as no server has it.

`--engine`: p50 and p99 through the whole engine for batches of 1 to 128, and where the time goes. `--trials`: scores in
fp32 and bf16 against the CPU's, graphs against plain launches, memory that runs out. With `--json` the file is merged
with what other shapes left there.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import trials
from benchmarks.gpu.compare import rank_correlation
from benchmarks.gpu.peer import TransformersPeer
from benchmarks.gpu.shapes import DEADLINE_S, SHAPES, Shape, parts_of, random_model, requests
from benchmarks.gpu.whole import engine_rows
from services.inference.engine.request import InferAnswer, Part
from services.inference.engine.runner import Flight, ServingModel
from services.inference.engine.tiers import CacheOptions
from services.inference.engine.warmup import graph_rows
from services.inference.model.checkpoint import LoadedModel

WARM_UPS = 8
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def ours(loaded: LoadedModel, shape: Shape, batch: int, precision: str = "bf16") -> ServingModel:
    """With room for three batches of users."""
    rows = 3 * batch * (shape.history + 64) + 4096
    width = shape.config.kv_lora_rank + shape.config.qk_rope_head_dim
    size = rows * width * shape.config.n_layers * (2 if precision == "bf16" else 4)
    return ServingModel(
        loaded,
        device="cuda",
        precision=precision,
        max_rows=shape.history,
        cache=CacheOptions(device_bytes=int(size * 1.1) + rows // 64 * shape.config.d_model * 4, host_bytes=-1),
    )


def paced(model: ServingModel, batches: Callable[[int], list[Part]], seconds: float) -> list[tuple[float, float]]:
    """(handed over, done) of each batch. As the executor does, the next one is handed over when the device is expected
    to be free within two of the host's own times."""
    spans: list[tuple[float, float]] = []
    flying: tuple[float, Flight] | None = None
    end = time.perf_counter() + seconds
    number, device_s, host_s, landed = 0, 0.0, 0.0, 0.0
    while time.perf_counter() < end or number < 2 * WARM_UPS:
        if flying is not None:
            free_at = max(flying[0] + host_s, landed) + device_s
            while time.perf_counter() < free_at - 2 * host_s and not flying[1].is_done:
                time.sleep(2e-4)
        begin = time.perf_counter()
        launched = model.launch(batches(number))
        host_s += 0.2 * (time.perf_counter() - begin - host_s)
        if flying is not None:
            model.land(flying[1])
            now = time.perf_counter()
            device_s += 0.2 * (now - max(flying[0] + host_s, landed) - device_s)
            landed = now
            spans.append((flying[0], now))
        flying = (begin, launched)
        number += 1
    if flying is not None:
        model.land(flying[1])
        spans.append((flying[0], time.perf_counter()))
    return spans


def alone(run: Callable[[int], object], seconds: float) -> list[tuple[float, float]]:
    spans: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end or number < 2 * WARM_UPS:
        begin = time.perf_counter()
        run(number)
        spans.append((begin, time.perf_counter()))
        number += 1
    return spans


def row_of(who: str, kind: str, batch: int, spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    spans = spans[WARM_UPS:]
    ms = [(done - begin) * 1e3 for begin, done in spans]
    p50, p99 = np.percentile(ms, [50, 99])
    elapsed = spans[-1][1] - spans[0][1]
    return {
        "who": who,
        "kind": kind,
        "batch": batch,
        "requests_per_s": round(batch * (len(spans) - 1) / elapsed, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


def measure_ours(loaded: LoadedModel, shape: Shape, batch: int, seconds: float) -> list[dict[str, Any]]:
    model = ours(loaded, shape, batch)
    begin = time.perf_counter()
    graphs = model.capture(graph_rows(model))
    print(f"{graphs} graphs captured in {time.perf_counter() - begin:.1f} s", flush=True)
    known = [parts_of(requests(shape, batch, seed)) for seed in range(2)]
    for parts in known:
        model.run(parts)
    rows = [row_of("silkrec", "cached", batch, paced(model, lambda number: known[number % 2], seconds))]
    # Every batch is new users: a key comes back when the others have pushed it out.
    rounds = model.store.pages * model.store.page_rows // (shape.history * batch) + 2
    pool = [parts_of(requests(shape, batch, 100 + seed)) for seed in range(rounds)]
    before = model.cache.counters.device_hit_rows
    rows.append(row_of("silkrec", "cold", batch, paced(model, lambda number: pool[number % rounds], seconds)))
    if model.cache.counters.device_hit_rows != before:
        raise RuntimeError("cold batches were served from the cache")
    return rows


def measure_peer(peer: TransformersPeer, shape: Shape, batch: int, seconds: float) -> list[dict[str, Any]]:
    asked = requests(shape, batch, 0)
    peer.fill(asked)
    rows = [row_of("transformers", "cached", batch, alone(lambda _: peer.cached(asked), seconds))]
    peer._cache = None
    rows.append(row_of("transformers", "cold", batch, alone(lambda _: peer.whole(asked), seconds)))
    return rows


def compare(loaded: LoadedModel, shape: Shape, peer: TransformersPeer) -> dict[str, float]:
    """Ours against transformers', cold and cached, as logits. Correlation of the candidates' order within a request."""
    asked = requests(shape, 4, 0)
    model = ours(loaded, shape, 4)
    cold = np.concatenate([_logits(answer) for answer in model.run(parts_of(asked))])
    cached = np.concatenate([_logits(answer) for answer in model.run(parts_of(asked))])
    peer.fill(asked)
    theirs = {"cold": peer.whole(asked), "cached": peer.cached(asked)}
    found = {}
    for kind, mine in (("cold", cold), ("cached", cached)):
        reference = theirs[kind]
        found[f"relative_error_{kind}"] = float(np.linalg.norm(mine - reference) / np.linalg.norm(reference))
        found[f"rank_correlation_{kind}"] = rank_correlation(mine, reference, shape.candidates)
    found["transformers_own_rank_correlation"] = rank_correlation(theirs["cold"], theirs["cached"], shape.candidates)
    return {name: round(value, 5) for name, value in found.items()}


def _logits(answer: object) -> np.ndarray:
    if not isinstance(answer, InferAnswer) or answer.scores is None:
        raise TypeError(f"no scores: {answer}")
    score = answer.scores.astype(np.float64)
    return np.asarray(np.log(score) - np.log1p(-score), np.float32)


def best(rows: Sequence[dict[str, Any]], who: str, kind: str) -> dict[str, Any] | None:
    fit = [r for r in rows if r["who"] == who and r["kind"] == kind and r["p99_ms"] <= DEADLINE_S * 1e3]
    return max(fit, key=lambda r: float(r["requests_per_s"]), default=None)


def measured_of(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    measured: dict[str, float] = {}
    for kind in ("cached", "cold"):
        mine, theirs = best(rows, "silkrec", kind), best(rows, "transformers", kind)
        if mine is not None:
            measured[f"silkrec_{kind}_{name}_requests_per_s"] = mine["requests_per_s"]
        if theirs is not None:
            measured[f"transformers_{kind}_{name}_requests_per_s"] = theirs["requests_per_s"]
    masked, held = best(rows, "transformers", "cold"), best(rows, "transformers", "cached")
    for kind in ("cached", "cold"):
        mine = best(rows, "silkrec", kind)
        if mine is not None and masked is not None:
            measured[f"ratio_{kind}_{name}"] = round(mine["requests_per_s"] / masked["requests_per_s"], 2)
    mine = best(rows, "silkrec", "cached")
    if mine is not None and held is not None:
        measured[f"ratio_cached_{name}_held"] = round(mine["requests_per_s"] / held["requests_per_s"], 2)
    return measured


def run(options: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[options.shape]
    loaded = random_model(shape, "cuda", torch.bfloat16)
    rows: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    if not options.ours_only:
        peer = TransformersPeer(loaded, shape, "cuda")
        print(f"transformers: {peer.implementation}", flush=True)
        found = compare(loaded, shape, peer)
        print(json.dumps(found), flush=True)
        measured |= {f"{key}_{options.shape}": value for key, value in found.items()}
    too_slow: set[str] = {"transformers"} if options.ours_only else set()
    for batch in options.batches:
        for measure in sorted({"silkrec", "transformers"} - too_slow):
            try:
                if measure == "silkrec":
                    new = measure_ours(loaded, shape, batch, options.seconds)
                else:
                    new = measure_peer(peer, shape, batch, options.seconds)
            except torch.OutOfMemoryError as error:
                print(f"{measure} batch {batch}: {str(error)[:90]}", flush=True)
                new = []
            for row in new:
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows += new
            if all(row["p99_ms"] > 2e3 * DEADLINE_S for row in new):
                too_slow.add(measure)
            gc.collect()
            torch.cuda.empty_cache()
    measured |= measured_of(options.shape, rows)
    if options.engine:
        rows += engine_rows(loaded, shape, options.seconds)
    if options.trials:
        found = trials.run()
        print(json.dumps(found), flush=True)
        measured |= found
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": torch.get_num_threads(),
    }
    return {"machine": machine, "rows": [{"shape": options.shape, **row} for row in rows], "measured": measured}


def merge(path: Path, result: dict[str, Any]) -> None:
    """Rows and figures of other shapes stay, of the same shape they are replaced."""
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    shapes = {row["shape"] for row in result["rows"]}
    kept = [row for row in old.get("rows", []) if row["shape"] not in shapes]
    workload = {"history": 512, "candidates": {"s": 256, "m": 256, "lite": 100}, "deadline_ms": DEADLINE_S * 1e3}
    whole = {
        "machine": result["machine"],
        "workload": workload,
        "rows": kept + result["rows"],
        "measured": {**old.get("measured", {}), **result["measured"]},
    }
    path.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8, 16, 24, 32, 48, 64, 96, 128])
    parser.add_argument("--seconds", type=float, default=1.5, help="a row")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--trials", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(2, "engine_gpu needs a CUDA device; torch.cuda.is_available() is False here\n")
    result = run(options)
    print(json.dumps({"machine": result["machine"], "measured": result["measured"]}, indent=2))
    if options.json is not None:
        merge(options.json, result)


if __name__ == "__main__":
    main()
