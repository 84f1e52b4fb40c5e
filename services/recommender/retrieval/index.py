"""An open index folder: both spaces, searched with numpy in and numpy out. FAISS: https://faiss.ai.

    manifest.json  user.faiss  item.faiss  item_index.npy ([n] int32, rising: row -> item_index)
    item_vectors.npy ([n, D])  seed_index.npy ([s] int32, rising)  seed_vectors.npy ([s, D])

Seeds are never found, only started from (`stock.py`); a folder without the two files has none.

Files are mapped, not read, where FAISS can (IVF lists; item_vectors by numpy), so processes of a host share one copy.
FAISS gives up the interpreter lock while it searches; 1,682 items cost about 0.05 ms, so the event loop may search
itself below ~50,000 items and should use a thread above (`benchmarks/retrieval.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from services.recommender.retrieval.hits import Hits, no_hits
from services.recommender.retrieval.near import NearItems
from shared.contracts.history import Bool, Float32, Int32, Int64
from shared.contracts.manifest import IndexManifest, Space
from shared.errors import ArtifactError
from shared.storage.artifacts import ArtifactStore

USER_FILE, ITEM_FILE = "user.faiss", "item.faiss"
ROWS_FILE, VECTORS_FILE = "item_index.npy", "item_vectors.npy"
SEED_ROWS_FILE, SEED_VECTORS_FILE = "seed_index.npy", "seed_vectors.npy"
RECENCY_DECAY = 0.85
_NEIGHBOURS = 100


@dataclass(frozen=True, slots=True)
class _Vectors:
    """`rows [n]` rising item_index, `values [n, D]` of the item space."""

    rows: Int32
    values: Float32

    def positions(self, item_index: npt.NDArray[Any]) -> tuple[Int64, Bool]:
        """`(row of each, whether it is there)`."""
        if len(self.rows) == 0:
            return np.zeros(len(item_index), np.int64), np.zeros(len(item_index), np.bool_)
        place = np.searchsorted(self.rows, item_index).clip(max=len(self.rows) - 1)
        return place, self.rows[place] == item_index


class RetrievalIndex:
    """Immutable once open; safe in several threads. `item_count` items can be retrieved; one query is compared with
    about `rows_searched` vectors."""

    def __init__(
        self, manifest: IndexManifest, items: _Vectors, seeds: _Vectors, item_space: Any, user_space: Any | None
    ) -> None:
        self.manifest = manifest
        self.version = manifest.version
        self.model_version = manifest.model_version
        self.catalogue_version = manifest.catalogue_version
        self.item_count = len(items.rows)
        self._rows = items.rows
        self._items = items
        self._seeds = seeds
        self._item_space = item_space
        self._user_space = user_space
        self._near = NearItems(lambda seeds, each: _search(item_space, self.vectors(seeds), each))
        self.rows_searched = max(_rows_searched(space) for space in (item_space, user_space) if space is not None)

    @classmethod
    def open(cls, store: ArtifactStore, version: str) -> RetrievalIndex:
        """Compares every sha256, then maps the files. Raises ArtifactError when something is missing, damaged or
        odd."""
        folder, manifest = store.open_folder(IndexManifest, version)
        try:
            items = _open_vectors(folder, ROWS_FILE, VECTORS_FILE)
            seeds = _Vectors(np.empty(0, np.int32), items.values[:0])
            if SEED_ROWS_FILE in manifest.files:
                seeds = _open_vectors(folder, SEED_ROWS_FILE, SEED_VECTORS_FILE)
            item_space = _open_space(folder, manifest.spaces["item"])
            user = manifest.spaces.get("user")
            user_space = None if user is None else _open_space(folder, user)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ArtifactError(f"{folder} cannot be opened: {error}; build the index again") from None
        _check(folder, items, seeds, [space for space in (item_space, user_space) if space is not None])
        return cls(manifest, items, seeds, item_space, user_space)

    @property
    def has_user_space(self) -> bool:
        """False for an index made from behaviour alone."""
        return self._user_space is not None

    @property
    def user_dim(self) -> int | None:
        return None if self._user_space is None else int(self._user_space.d)

    def contains(self, item_index: int) -> bool:
        """Whether neighbours of this item can be told."""
        wanted = np.array([item_index])
        return bool(self._items.positions(wanted)[1][0] or self._seeds.positions(wanted)[1][0])

    def vectors(self, item_index: Int32) -> Float32:
        """[N, D] of the item space, for likeness between candidates; a zero row for what the index lacks."""
        wanted = np.asarray(item_index)
        result = np.zeros((len(wanted), self._items.values.shape[1]), np.float32)
        for kept in (self._items, self._seeds):
            positions, found = kept.positions(wanted)
            result[found] = kept.values[positions[found]]
        return result

    def by_user_vector(self, vector: Float32, k: int) -> Hits:
        """Inner product of `vector [D]` with the model's item vectors; no hits without a user space. Raises ValueError
        for another D and for a vector that is not finite, which FAISS would answer with nonsense."""
        if self._user_space is None or k < 1:
            return no_hits()
        query = np.ascontiguousarray(vector, np.float32).reshape(1, -1)
        if query.shape[1] != self._user_space.d or not np.isfinite(query).all():
            raise ValueError(f"a finite user vector [{self._user_space.d}] is needed, got {query.shape[1:]}")
        scores, positions = _search(self._user_space, query, k)
        found = positions[0] >= 0
        return Hits(self._rows[positions[0][found]], scores[0][found])

    def similar(self, item_index: int, k: int) -> Hits:
        """Nearest items by cosine, itself left out; no hits for an item that the index lacks."""
        return self.by_items(np.array([item_index], np.int32), k)

    def by_items(self, item_index: Int32, k: int) -> Hits:
        """Item to item from seeds `item_index [M]`, NEWEST FIRST: one batched search, neighbours merged.

        score(c) = sum over seeds of 0.85^place x cosine(seed, c), over the 100 or more neighbours of each seed;
        negative cosines add nothing. Seeds are no hits; seeds that the index lacks are skipped, repeated ones count
        once.
        """
        wanted = np.asarray(item_index)
        known = self._items.positions(wanted)[1] | self._seeds.positions(wanted)[1]
        unique, first = np.unique(wanted[known], return_index=True)
        seeds = unique[np.argsort(first)]
        if len(seeds) == 0 or k < 1:
            return no_hits()
        weight = RECENCY_DECAY ** np.arange(len(seeds), dtype=np.float32)
        # Twice as many as wanted in all, at least 100 each: twelve searches for 212 took 0.5 ms, for 112 0.2.
        each = max(_NEIGHBOURS, -(-2 * k // len(seeds))) + len(seeds)
        scores, near = self._near.of(seeds.astype(np.int32), each)
        return self._merged(near, np.maximum(scores, 0) * weight[:, None], seeds, k)

    def _merged(self, near: Int64, scores: Float32, seeds: npt.NDArray[Any], k: int) -> Hits:
        flat, amount = near.ravel(), scores.ravel()
        valid = flat >= 0
        candidates, place = np.unique(flat[valid], return_inverse=True)
        total = np.bincount(place, amount[valid], len(candidates))
        total[np.isin(self._rows[candidates], seeds)] = 0
        order = np.argsort(-total, kind="stable")[:k]
        order = order[total[order] > 0]
        return Hits(self._rows[candidates[order]], total[order].astype(np.float32))


def _search(space: Any, queries: Float32, k: int) -> tuple[Float32, Int64]:
    # OpenMP keeps this number a thread: without it each searching thread would start as many helpers as there are
    # cores, which then fight with the inference process for them.
    faiss.omp_set_num_threads(1)
    return space.search(queries, min(k, space.ntotal))  # type: ignore[no-any-return]


def _rows_searched(space: Any) -> int:
    cells = faiss.try_extract_index_ivf(space)
    if cells is None:
        return int(space.ntotal)
    return int(cells.nlist + space.ntotal * min(cells.nprobe, cells.nlist) // cells.nlist)


def _open_space(folder: Path, space: Space) -> Any:
    flags = faiss.IO_FLAG_MMAP if space.kind.startswith("IVF") else 0
    index = faiss.read_index(str(folder / space.file), flags | faiss.IO_FLAG_READ_ONLY)
    if index.d != space.dim or index.ntotal != space.count:
        raise ValueError(f"{space.file} is {index.ntotal} x {index.d}, its manifest says {space.count} x {space.dim}")
    if space.nprobe:
        faiss.extract_index_ivf(index).nprobe = space.nprobe
    if flags:
        # Mapped lists start 32 threads a search to read ahead: 1.3 ms for what takes 0.06 without them.
        cells: Any = faiss.extract_index_ivf(index)
        lists: Any = faiss.downcast_InvertedLists(cells.invlists)
        lists.prefetch_nthread = 0
    return index


def _open_vectors(folder: Path, rows_file: str, vectors_file: str) -> _Vectors:
    values = np.load(folder / vectors_file, mmap_mode="r")
    return _Vectors(np.load(folder / rows_file), values)


def _check(folder: Path, items: _Vectors, seeds: _Vectors, spaces: list[Any]) -> None:
    agree = all(space.ntotal == len(items.rows) for space in spaces)
    for kept in (items, seeds):
        agree = agree and kept.rows.ndim == 1 and kept.values.shape == (len(kept.rows), spaces[0].d)
        agree = agree and not (np.diff(kept.rows) <= 0).any()
    if not agree:
        raise ArtifactError(f"the files of {folder} do not belong together; build the index again")
