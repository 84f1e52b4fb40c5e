"""What a search costs and finds: Flat, the kind that is chosen, and HNSW, over the same vectors in the same run.

    python benchmarks/retrieval.py [--sizes 2000,100000] [--million] [--json FILE]

Vectors are random around random centres (100 items a centre), 64 dimensions, length 1; queries lie beside items.
Folders are published and opened as in service, so IVF lists are mapped. `user`: one search for 200 by user vector.
`items`: the behaviour source's search, 200 from twelve seeds. One query at a time, one core; recall@100 against exact
search. HNSW is a bare FAISS index in memory, `efSearch` raised until it reaches the same recall.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.report import machine, save
from services.recommender.retrieval.build import RECALL_GOAL, build_space, publish
from services.recommender.retrieval.choose import FLAT, kind_for
from services.recommender.retrieval.index import ITEM_FILE, USER_FILE, RetrievalIndex
from services.recommender.retrieval.tune import exact_top, recall
from shared.contracts.history import Float32, Int32
from shared.contracts.manifest import IndexManifest
from shared.storage.artifacts import ArtifactStore

DIM, CLUSTER, QUERIES, TIMED, SEEDS, K = 64, 100, 500, 300, 12, 200
HNSW_MOST = 100_000


@dataclass(frozen=True)
class Row:
    items: int
    kind: str
    build_s: float
    search: int
    recall_at_100: float
    user_p50_ms: float
    user_p99_ms: float
    items_p50_ms: float
    items_p99_ms: float
    file_mb: float


def vectors_of(count: int, random: np.random.Generator) -> Float32:
    centres = random.standard_normal((max(1, count // CLUSTER), DIM)).astype(np.float32)
    near = centres[random.integers(0, len(centres), count)]
    return unit(near + 0.6 * random.standard_normal((count, DIM)).astype(np.float32))


def unit(vectors: Float32) -> Float32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def queries_of(vectors: Float32, random: np.random.Generator) -> Float32:
    picked = vectors[random.integers(0, len(vectors), QUERIES)]
    return unit(picked + 0.05 * random.standard_normal(picked.shape).astype(np.float32))


def served(folder: Path, vectors: Float32, queries: Float32, kind: str | None) -> Row:
    """A published folder with both spaces, opened."""
    store, count = ArtifactStore(folder), len(vectors)
    began = time.perf_counter()
    item = build_space(vectors, ITEM_FILE, kind=kind)
    build_s = time.perf_counter() - began
    user = build_space(vectors, USER_FILE, kind=kind)
    version = f"i-{count}-{item.space.kind.split(',')[0]}"
    made = IndexManifest(
        version=version,
        created_at=datetime.now(UTC),
        catalogue_version=1,
        model_version="m",
        spaces={"item": item.space, "user": user.space},
    )
    rows = np.arange(count, dtype=np.int32)
    publish(store, made, {"item": item, "user": user}, (rows, vectors), (rows[:0], vectors[:0]))
    index = RetrievalIndex.open(store, version)
    found = np.full((len(queries), 100), -1, np.int64)
    for place, query in enumerate(queries):
        hits = index.by_user_vector(query, 100).item_index
        found[place, : len(hits)] = hits
    user_ms = timed(lambda number: index.by_user_vector(queries[number % len(queries)], K))
    seeds = seeds_of(count)
    items_ms = timed(lambda number: index.by_items(seeds[number], K))
    size = (store.folder(IndexManifest, version) / ITEM_FILE).stat().st_size
    return row(item.space.kind, count, build_s, user.space.nprobe, recall(found, exact_top(vectors, queries)),
               user_ms, items_ms, size)  # fmt: skip


def graph(vectors: Float32, queries: Float32) -> Row:
    truth = exact_top(vectors, queries)
    began = time.perf_counter()
    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)
    build_s = time.perf_counter() - began
    faiss.omp_set_num_threads(1)
    for effort in (128, 200, 300, 500, 800, 1200, 2000):
        index.hnsw.efSearch = effort
        reached = recall(index.search(queries, 100)[1], truth)
        if reached >= RECALL_GOAL:
            break
    user_ms = timed(lambda number: index.search(queries[number % len(queries)][None], K))
    seeds = seeds_of(len(vectors))
    items_ms = timed(lambda number: index.search(vectors[seeds[number]], 112))
    size = len(faiss.serialize_index(index))
    return row("HNSW32", len(vectors), build_s, index.hnsw.efSearch, reached, user_ms, items_ms, size)


def seeds_of(count: int) -> Int32:
    return np.random.default_rng(3).integers(0, count, (TIMED, SEEDS)).astype(np.int32)


def timed(search: Callable[[int], Any]) -> tuple[float, float]:
    """p50 and p99 in ms; a tenth of the searches warm up."""
    taken = []
    for number in range(TIMED):
        began = time.perf_counter()
        search(number)
        taken.append((time.perf_counter() - began) * 1000)
    p50, p99 = np.percentile(taken[TIMED // 10 :], (50, 99))
    return float(p50), float(p99)


def row(
    kind: str,
    items: int,
    build_s: float,
    search: int,
    found: float,
    user_ms: tuple[float, float],
    items_ms: tuple[float, float],
    size: int,
) -> Row:
    user = round(user_ms[0], 3), round(user_ms[1], 3)
    by_items = round(items_ms[0], 3), round(items_ms[1], 3)
    return Row(items, kind, round(build_s, 2), search, round(found, 4), *user, *by_items, round(size / 1e6, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2000,20000,100000")
    parser.add_argument("--million", action="store_true", help="1,000,000 items too: minutes, 2 GB of memory")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")] + ([1_000_000] if chosen.million else [])
    rows: list[Row] = []
    measured: dict[str, float] = {}
    for size in sizes:
        random = np.random.default_rng(size)
        vectors = vectors_of(size, random)
        queries = queries_of(vectors, random)
        with tempfile.TemporaryDirectory() as folder:
            here = [served(Path(folder), vectors, queries, FLAT)]
            if kind_for(size) != FLAT:
                faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
                here.append(served(Path(folder), vectors, queries, None))
        best = here[-1]
        if size <= HNSW_MOST:
            faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
            here.append(graph(vectors, queries))
        for one in here:
            print(json.dumps(asdict(one)), flush=True)
        rows += here
        for name in ("recall_at_100", "user_p50_ms", "user_p99_ms", "items_p50_ms", "items_p99_ms"):
            measured[f"{name}_{size}"] = getattr(best, name)
    about = {**machine(), "faiss": faiss.__version__}
    workload = {"dim": DIM, "seeds": SEEDS, "k": K, "queries": QUERIES, "recall_goal": RECALL_GOAL}
    found = {"machine": about, "workload": workload, "rows": [asdict(one) for one in rows], "measured": measured}
    save(found, chosen.json)


if __name__ == "__main__":
    main()
