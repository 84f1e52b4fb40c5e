"""FAISS kinds against exact search, and what an open index answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.recommender.retrieval.build import build_space, publish
from services.recommender.retrieval.choose import FLAT, FLAT_ITEMS, clusters_for, kind_for
from services.recommender.retrieval.cooccurrence import unit
from services.recommender.retrieval.index import ITEM_FILE, ROWS_FILE, USER_FILE, VECTORS_FILE, RetrievalIndex
from services.recommender.retrieval.tune import exact_top, recall
from shared.contracts.history import Float32, Int32
from shared.contracts.manifest import IndexManifest
from shared.errors import ArtifactError
from shared.storage.artifacts import ArtifactStore
from tests.unit.recommender.indexes import put_index

DIM = 16


def clustered(count: int, seed: int) -> Float32:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 50), DIM))
    return unit(
        (centres[random.integers(0, len(centres), count)] + 0.4 * random.standard_normal((count, DIM))).astype("f4")
    )


def put(store: ArtifactStore, version: str, vectors: Float32, *, rows: Int32, seeds: Int32, kind: str | None) -> None:
    """The first of `vectors` are `rows`, the rest are `seeds`."""
    count = len(rows)
    item = build_space(vectors[:count], ITEM_FILE, kind=kind)
    user = build_space(vectors[:count], USER_FILE, kind=kind)
    manifest = IndexManifest(
        version=version,
        created_at=datetime.now(UTC),
        catalogue_version=1,
        model_version="m-1",
        spaces={"item": item.space, "user": user.space},
    )
    publish(store, manifest, {"item": item, "user": user}, (rows, vectors[:count]), (seeds, vectors[count:]))


def test_small_catalogues_are_exact_and_large_ones_clustered() -> None:
    assert kind_for(0) == kind_for(FLAT_ITEMS - 1) == FLAT
    assert [clusters_for(count) for count in (20_000, 100_000, 1_000_000)] == [512, 1024, 4096]
    assert kind_for(100_000) == "IVF1024,Flat"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), goal=st.sampled_from([0.8, 0.95, 1.0]), count=st.integers(2000, 5000))
def test_a_tuned_search_reaches_the_recall_that_is_asked_for(seed: int, goal: float, count: int) -> None:
    vectors = clustered(count, seed)
    built = build_space(vectors, ITEM_FILE, kind="IVF32,Flat", goal=goal)
    assert built.space.recall_at_100 >= goal - 1e-4
    other = clustered(count, seed)[::7]
    found = built.index.search(other, 100)[1]
    assert recall(found, exact_top(vectors, other)) >= goal - 0.05


def test_the_same_vectors_give_the_same_index() -> None:
    vectors = clustered(3000, 1)
    first, second = (build_space(vectors, ITEM_FILE, kind="IVF32,Flat") for _ in range(2))
    assert first.space == second.space
    assert np.array_equal(first.index.search(vectors[:50], 100)[1], second.index.search(vectors[:50], 100)[1])


def test_a_search_is_never_so_narrow_that_its_answer_is_short() -> None:
    vectors = clustered(4000, 2)
    built = build_space(vectors, ITEM_FILE, kind="IVF64,Flat", goal=0.5)
    assert built.space.nprobe >= 400 * 64 // 4000


def test_vectors_without_clusters_stay_flat() -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((FLAT_ITEMS, 96)).astype(np.float32))
    assert build_space(vectors, ITEM_FILE, goal=0.99).space.kind == FLAT


def test_vectors_that_are_no_numbers_are_refused() -> None:
    vectors = clustered(100, 0)
    vectors[7, 3] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        build_space(vectors, ITEM_FILE)


@pytest.mark.parametrize("kind", [FLAT, "IVF16,Flat"])
def test_an_open_folder_answers_with_item_indices(tmp_path: Path, kind: str) -> None:
    store, vectors = ArtifactStore(tmp_path), clustered(2000, 3)
    rows = np.arange(2000, dtype=np.int32) * 3 + 1
    put(store, "i-1", vectors, rows=rows, seeds=np.empty(0, np.int32), kind=kind)
    index = RetrievalIndex.open(store, "i-1")
    hits = index.by_user_vector(vectors[5], 10)
    assert hits.item_index[0] == rows[5]
    assert (np.diff(hits.score) <= 0).all()
    similar = index.similar(int(rows[5]), 10)
    assert rows[5] not in similar.item_index
    assert set(similar.item_index) <= set(rows)
    assert not index.contains(2)


def test_what_cannot_be_found_can_be_started_from(tmp_path: Path) -> None:
    store, vectors = ArtifactStore(tmp_path), clustered(300, 4)
    rows, seeds = np.arange(299, dtype=np.int32), np.array([500], np.int32)
    put(store, "i-1", vectors, rows=rows, seeds=seeds, kind=FLAT)
    index = RetrievalIndex.open(store, "i-1")
    assert index.contains(500)
    hits = index.similar(500, 5)
    assert np.array_equal(hits.item_index, exact_top(vectors[:299], vectors[299:], 5)[0])
    assert 500 not in index.by_user_vector(vectors[299], 299).item_index
    assert np.allclose(index.vectors(np.array([500, 0, 999], np.int32)), [vectors[299], vectors[0], np.zeros(DIM)])


@pytest.mark.parametrize("name", [ITEM_FILE, USER_FILE, ROWS_FILE, VECTORS_FILE])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path)
    put_index(store, "i-1", model_version="m-1")
    path = store.folder(IndexManifest, "i-1") / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        RetrievalIndex.open(store, "i-1")


def test_a_torn_publish_is_never_seen(tmp_path: Path) -> None:
    store, seen = ArtifactStore(tmp_path), [["not looked yet"]]

    def torn() -> None:
        with store.staging(IndexManifest, "i-1") as folder:
            (folder / ITEM_FILE).write_bytes(b"half")
            seen.append(store.versions(IndexManifest))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert seen[-1] == []
    assert list((tmp_path / "indexes").iterdir()) == []
