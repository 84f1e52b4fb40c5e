"""Small steps replayed as CUDA graphs: what a launch costs on the host (about 8 us a kernel, 25 kernels a layer) is
paid once a size and not at every pass."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.inference.model.serve.forward import ServingRanker
from services.inference.model.serve.staging import (
    ABSORBED_TILE,
    EXPANDED_TILE,
    Columns,
    Shape,
    StagedStep,
    buffer_size,
)
from services.inference.model.serve.step import LatentStore, Segments, Step, StepOutput
from services.inference.model.serve.triton_ops import TritonOps

_SMALL = (64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
ROWS = (*_SMALL, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 24576, 32768, 49152, 65536)
_PAGES = (8, 32, 128, 256, 512, 768, 1024)
_FEW_PAGES = 128
_WARM_UPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    shape: Shape
    buffer: Tensor
    graph: torch.cuda.CUDAGraph
    output: StepOutput


class StepGraphs:
    """Graphs of one model over one store. Rows are rounded up, from 4,096 to 16,384 by a fifth at most; larger steps
    run as they are: launching 12 layers takes the host 13 ms, and an H100 as long for 16,384 rows of d 1,024."""

    def __init__(self, ranker: ServingRanker, ops: TritonOps, store: LatentStore) -> None:
        self._ranker, self._ops, self._store = ranker, ops, store
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[int, int, bool], _Captured] = {}
        self.replays = 0

    def capture(self, most_rows: int, *, longest: int) -> int:
        """Captures every size up to `most_rows` rows, for histories of up to `longest` rows. How many."""
        each = -(-longest // self._store.page_rows)
        for size in ROWS:
            if size > most_rows:
                break
            for count in _pages_for(size, each * _requests(size)):
                for absorbed in (False, True):
                    if not absorbed or size <= self._ops.absorb_below * _requests(size):
                        self._captured[size, count, absorbed] = self._capture(size, count, absorbed=absorbed)
        return len(self._captured)

    def run(self, step: Step) -> StepOutput | None:
        """None: no graph is large enough. The output is overwritten by the next run of the same size."""
        columns = self._ops.columns(step, self._store)
        needed = columns.shape()
        key = _bucket(needed, columns.absorbed)
        found = None if key is None else self._captured.get(key)
        if found is None or not _fits(needed, found.shape):
            return None
        # Pinned memory of its own a run: the copy of the run before may still wait behind its kernels.
        pinned = torch.empty(found.buffer.shape, dtype=torch.int32, pin_memory=True)
        columns.fill(pinned.numpy(), found.shape)
        found.buffer.copy_(pinned, non_blocking=True)
        found.graph.replay()
        self.replays += 1
        return StepOutput(found.output.user[: needed.requests], found.output.logits[: needed.candidates])

    def _capture(self, rows: int, pages: int, *, absorbed: bool) -> _Captured:
        shape = _shape(rows, pages, ABSORBED_TILE if absorbed else EXPANDED_TILE)
        pinned = torch.empty(buffer_size(shape), dtype=torch.int32, pin_memory=True)
        blank = Columns(_nothing(), self._store.page_rows, absorbed=absorbed, trash_page=self._store.trash_page)
        blank.fill(pinned.numpy(), shape)
        buffer = pinned.to(self._ranker.device)
        step: StagedStep = blank.step_over(buffer, shape)
        stream = torch.cuda.Stream(self._ranker.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._ranker.forward(step, self._store)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._ranker.forward(step, self._store)
        return _Captured(shape, buffer, graph, output)


def _requests(rows: int) -> int:
    """That a graph of so many rows has room for; each costs two tiles of attention that find nothing to do."""
    return 32 if rows <= _SMALL[-1] else 128


def _pages_for(rows: int, most: int) -> tuple[int, ...]:
    """Page counts that steps of so many rows are captured with: few rows with few pages, many with many. Rounding pages
    up costs their expansion to keys and values."""
    first = 0 if rows <= _SMALL[-1] else _PAGES.index(_FEW_PAGES)
    last = bisect_left(_PAGES, most)
    return _PAGES[first : last + 1]


def _bucket(needed: Shape, absorbed: bool) -> tuple[int, int, bool] | None:
    row = bisect_left(ROWS, needed.rows)
    if row == len(ROWS) or needed.pages > _PAGES[-1]:
        return None
    pages = max(needed.pages, 0 if ROWS[row] <= _SMALL[-1] else _FEW_PAGES)
    return ROWS[row], _PAGES[bisect_left(_PAGES, pages)], absorbed


def _shape(rows: int, pages: int, tile_rows: int) -> Shape:
    requests = _requests(rows)
    tiles = -(-rows // tile_rows) + 2 * requests
    return Shape(
        rows=rows,
        candidates=rows,
        pages=pages,
        requests=requests,
        kept=rows,
        written=requests,
        tiles=tiles,
        last_tiles=tiles,
    )


def _fits(needed: Shape, given: Shape) -> bool:
    return all(size <= given.sizes()[name] for name, size in needed.sizes().items())


def _nothing() -> Step:
    """A step of no requests."""
    none = torch.empty(0, dtype=torch.int32)
    zero = np.zeros(1, np.int32)
    return Step(Segments(zero, zero, zero, zero[:0]), *([none] * 12))
