"""What the pipeline itself costs a request: all but inference, FAISS and the stores, which are instant fakes here.

    python benchmarks/pipeline.py [--seconds 3] [--json FILE]

The components are the real ones, in the order of `pipeline_wiring`, over a catalogue of 20,000 items. `plain`: sources,
merge, filters, blending, slate. `full`: besides, an expression filter, diversity 0.3, two promotions, exploration 0.1.
One request at a time, so a row is CPU time of one core; `explain` lists every removal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, save
from services.recommender.catalogue import Catalogue, CatalogueRow
from services.recommender.domain import Promotion, Query, UserFeatures
from services.recommender.filters import compile_filter
from services.recommender.fresh import FreshTable
from services.recommender.pipeline import Limits, RecommendPipeline
from services.recommender.pipeline.context import Snapshot
from services.recommender.pipeline_wiring import standard_stages
from services.recommender.popular import PopularTable
from services.recommender.retrieval.hits import Hits
from shared.contracts.history import Float32, Int32, UserHistory, pack
from shared.contracts.inference import EncodeRequest, EncodeResult, RankRequest, RankResult
from shared.contracts.manifest import ManifestAction, ModelManifest
from shared.schema import ItemField, Schema
from shared.settings.roots import RecommenderSettings, Settings

ITEMS, DIM, HISTORY, WARM_UP, LEAST = 20_000, 64, 200, 200, 100
DAY_US = 86_400_000_000
SCHEMA = Schema(item_fields={"brand": ItemField(type="string")})
HEADS = (("click", 2), ("view", 3), ("add_to_cart", 4), ("purchase", 5), ("like", 6))


@dataclass(frozen=True)
class Row:
    item_index: int
    item_id: str
    created_at_us: int | None
    categories: tuple[str, ...]
    properties: dict[str, Any]
    price: float | None = 10.0
    known: bool = True
    item_type: str | None = None
    title: str | None = None
    is_hidden: bool = False
    available_from_us: int | None = None
    available_until_us: int | None = None
    currency: str | None = None
    revision: int = 1
    deleted: bool = False


class InstantIndex:
    """Fixed neighbours, so that no search is measured; `benchmarks/retrieval.py` measures those."""

    rows_searched = ITEMS
    model_version = "m"
    has_user_space = True

    def __init__(self, random: np.random.Generator) -> None:
        self._near = random.permutation(ITEMS).astype(np.int32)
        self._score = np.linspace(1, 0, ITEMS, dtype=np.float32)
        self._vectors = random.standard_normal((ITEMS, DIM)).astype(np.float32)

    def by_user_vector(self, _vector: Float32, k: int) -> Hits:
        return Hits(self._near[:k], self._score[:k])

    def by_items(self, _item_index: Int32, k: int) -> Hits:
        return Hits(self._near[k // 2 : k // 2 + k], self._score[:k])

    def vectors(self, item_index: Int32) -> Float32:
        return self._vectors[item_index]


class InstantInference:
    def __init__(self, random: np.random.Generator) -> None:
        self._scores = random.random((5000, len(HEADS)), np.float32)
        self._vector = np.ones(DIM, np.float32)

    async def encode(self, request: EncodeRequest) -> EncodeResult:
        return EncodeResult(self._vector, request.model_version)

    async def rank(self, request: RankRequest) -> RankResult:
        count = len(request.candidate)
        return RankResult(self._scores[:count], np.ones(count, np.bool_), request.model_version)


class InstantUser:
    def __init__(self, random: np.random.Generator) -> None:
        rows = pack(random.integers(0, ITEMS, HISTORY), random.choice([2, 3, 5, 6], HISTORY), np.arange(HISTORY))
        self._features = UserFeatures(UserHistory("u:1", rows, 1, "e"), {"plan": "gold"}, ("vip",))

    async def hydrate(self, _query: Query, _snapshot: Snapshot, _timeout_s: float) -> UserFeatures:
        return self._features


@dataclass(frozen=True)
class State:
    release_name: str
    model: ModelManifest | None
    index: InstantIndex | None
    catalogue: Catalogue
    popular: PopularTable
    fresh: FreshTable
    model_version: str | None = "m"
    index_version: str | None = "i"


def state(random: np.random.Generator, now_us: int) -> State:
    catalogue = Catalogue(SCHEMA)
    rows: list[CatalogueRow] = [
        Row(n, f"item-{n}", now_us - (n % 300) * DAY_US, (f"c{n % 40}",), {"brand": f"b{n % 100}"})
        for n in range(ITEMS)
    ]
    catalogue.apply(rows)
    popular = PopularTable(
        random.permutation(ITEMS).astype(np.int32), np.linspace(1000, 1, ITEMS, dtype=np.float32), {}
    )
    model = ModelManifest(
        version="m",
        created_at=datetime(2024, 1, 1, tzinfo=UTC),
        catalogue_version=1,
        architecture={},
        actions=tuple(ManifestAction(name=name, code=code) for name, code in HEADS),
        vocabulary=ITEMS,
        vector_dim=DIM,
        feature_schema="",
    )
    return State("r", model, InstantIndex(random), catalogue, popular, FreshTable.from_catalogue(catalogue))


def variants(now_us: int) -> dict[str, Query]:
    plain = Query(
        user_key="u:1",
        scene="home",
        weights={"click": 1.0, "purchase": 4.0},
        count=40,
        deadline=0.0,
        now_us=now_us,
        seed=1,
    )
    promotions = (
        Promotion("a", compile_filter('brand = "b7"', SCHEMA), position=1),
        Promotion("b", compile_filter('category = "c3"', SCHEMA), percent=10),
    )
    chosen = compile_filter('price < 50 AND NOT brand IN ("b1", "b2")', SCHEMA)
    full = replace(plain, filter=chosen, diversity=0.3, exploration=0.1, promotions=promotions)
    return {"plain": plain, "full": full, "full, explain": replace(full, explain=True)}


async def measure(pipeline: RecommendPipeline, query: Query, seconds: float) -> tuple[list[float], dict[str, float]]:
    """Milliseconds a request, and the median of each stage."""
    took: list[float] = []
    stages: dict[str, list[float]] = {}
    end = time.perf_counter() + seconds
    number = 0
    while number < WARM_UP + LEAST or time.perf_counter() < end:
        one = replace(query, seed=number, deadline=time.monotonic() + 1.0)
        begin = time.perf_counter()
        slate = await pipeline.run(one)
        spent = (time.perf_counter() - begin) * 1000
        if slate.degraded or len(slate.items) != query.count:
            raise SystemExit(f"the run is worth nothing: {slate.degraded}, {len(slate.items)} items")
        if number >= WARM_UP:
            took.append(spent)
            for name, value in slate.stage_ms.items():
                stages.setdefault(name, []).append(value)
        number += 1
    return took, {name: round(float(np.median(values)), 4) for name, values in stages.items()}


def run(seconds: float) -> dict[str, Any]:
    random, now_us = np.random.default_rng(1), time.time_ns() // 1000
    snapshot = state(random, now_us)
    user, inference = InstantUser(random), InstantInference(random)
    gc.collect()
    gc.freeze()
    rows: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    for candidates in (100, 500, 1000):
        recommender = RecommenderSettings(candidates=candidates, per_source=candidates)
        stages = standard_stages(
            Settings(data=SCHEMA, recommender=recommender), user=user, inference=inference, side_effects=()
        )
        limits = Limits(candidates, candidates, 0.006, 0.068)
        pipeline = RecommendPipeline(stages, current=lambda _query: snapshot, limits=limits)
        for name, query in variants(now_us).items():
            took, medians = asyncio.run(measure(pipeline, query, seconds))
            p50, p95, p99 = (round(float(value), 3) for value in np.percentile(took, [50, 95, 99]))
            row = {"candidates": candidates, "variant": name, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
            rows.append({**row, "requests": len(took), "stage_ms": medians})
            print(f"{candidates:5} candidates  {name:14} p50 {p50:6.3f}  p95 {p95:6.3f}  p99 {p99:6.3f} ms")
            key = name.replace(", ", "_")
            measured[f"pipeline_{candidates}_{key}_p50_ms"] = p50
            measured[f"pipeline_{candidates}_{key}_p95_ms"] = p95
    about = {**machine(), "numpy": np.__version__}
    workload = {"items": ITEMS, "history": HISTORY, "count": 40, "heads": len(HEADS), "concurrency": 1}
    return {"machine": about, "workload": workload, "rows": rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="a row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options.seconds)
    save(result, options.json)


if __name__ == "__main__":
    main()
