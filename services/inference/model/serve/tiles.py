"""Cuts a step's query rows into tiles for the attention kernel: a tile belongs to one request and one kind of row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.inference.model.serve.step import Segments

Int64 = npt.NDArray[np.int64]


def tiles_of(segments: Segments, page_rows: int, rows: int, *, last: bool) -> npt.NDArray[np.int32]:
    """[4, tiles]: first query row, query rows (at most `rows`), first key row, 1 for candidates. `last`: the last
    layer's query rows, where a request has at most one new one."""
    candidate, row, page = (np.asarray(x, np.int64) for x in (segments.candidate, segments.row, segments.page))
    keys = page[:-1] * page_rows
    fresh = np.diff(row)
    begins = row[:-1]
    if last:
        fresh = np.minimum(fresh, 1)
        begins = np.cumsum(fresh) - fresh
    first = np.concatenate((candidate[:-1], candidate[-1] + begins))
    count = np.concatenate((np.diff(candidate), fresh))
    needed = -(-count // rows)
    owner = np.repeat(np.arange(len(count)), needed)
    within = (np.arange(len(owner)) - np.repeat(np.cumsum(needed) - needed, needed)) * rows
    is_candidate = owner < len(keys)
    cut = (first[owner] + within, np.minimum(rows, count[owner] - within), np.tile(keys, 2)[owner], is_candidate)
    return np.stack([np.asarray(column, np.int32) for column in cut])
