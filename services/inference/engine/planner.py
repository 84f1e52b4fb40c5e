"""From the requests of a batch to one step: what is new of each, where its history lies, what must be finished.

Columns are joined once for the whole batch; a request costs one look-up and no array of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from services.inference.engine.digest import digests, row_hashes, window_start
from services.inference.engine.item_rows import ItemRows
from services.inference.engine.latent_cache import LatentCache, Placement
from services.inference.engine.request import InferRequest, Part
from services.inference.model.config import GAP_BUCKETS
from services.inference.model.embedding import CANDIDATE, FIRST
from services.inference.model.serve.step import NOWHERE, Segments, Step

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Planned:
    """`cached` [B]: history rows that were not computed."""

    step: Step
    cached: tuple[int, ...]


class StepPlanner:
    """`cap`: rows of a history that the model sees."""

    def __init__(self, items: ItemRows, cache: LatentCache, cap: int) -> None:
        self._items, self._cache, self._cap = items, cache, cap

    def plan(self, parts: Sequence[Part], now: float) -> Planned:
        """Places every history in the cache. Raises CacheFull: then `cache.abort()`."""
        columns = _Columns.of([_windowed(part.request, self._cap) for part in parts])
        table_row = self._items.rows_of(columns.item)
        digest = digests(row_hashes(table_row, columns.action, columns.time), columns.start)
        self._cache.begin()
        start = columns.start.tolist()
        placed = [
            self._cache.place(
                part.request.user_key,
                digest[start[b] : start[b + 1]],
                b,
                now,
                now + part.request.deadline_us * 1e-6,
                is_passing=part.request.priority > 0,
                ranks=part.request.candidate is not None,
            )
            for b, part in enumerate(parts)
        ]
        step = self._step(parts, columns, table_row, placed)
        return Planned(step, tuple(placement.cached for placement in placed))

    def _step(self, parts: Sequence[Part], columns: _Columns, table_row: Int64, placed: Sequence[Placement]) -> Step:
        length = np.diff(columns.start)
        first = np.asarray([placement.first for placement in placed], np.int64)
        page_count = np.asarray([len(placement.pages) for placement in placed], np.int64)
        pages = np.asarray([page for placement in placed for page in placement.pages], np.int64)
        wanted = np.asarray([part.candidates for part in parts], np.int64)
        row, page, candidate = _starts(length - first), _starts(page_count), _starts(wanted)
        owner = np.repeat(np.arange(len(parts)), wanted)
        # New rows: their places in the joined columns and in their own histories.
        asker = np.repeat(np.arange(len(parts)), length - first)
        position = np.arange(row[-1]) - row[asker] + first[asker]
        source = columns.start[asker] + position
        slot = pages[page[asker] + position // self._page_rows] * self._page_rows + position % self._page_rows
        unwritten = np.asarray([placement.write_from for placement in placed], np.int64)[asker] > position
        slot[unwritten] = NOWHERE
        item = np.concatenate((self._items.rows_of(_joined_candidates(parts)), table_row[source]))
        bucket = np.concatenate((_candidate_buckets(parts, columns)[owner], columns.buckets()[source]))
        finished = _Finished.of(placed, int(candidate[-1]), row)
        return Step(
            segments=Segments(*(column.astype(np.int32) for column in (candidate, row, page, length))),
            item=_int32(item),
            action=_int32(
                np.concatenate((np.full(len(owner), CANDIDATE), np.clip(columns.action[source], 0, CANDIDATE)))
            ),
            bucket=_int32(bucket),
            position=_int32(np.concatenate((length[owner], position))),
            slot=_int32(np.concatenate((np.full(len(owner), NOWHERE), slot))),
            page=_int32(pages),
            owner=_int32(owner),
            keep=_int32(finished.keep),
            last=_int32(finished.last),
            vector_page=_int32(finished.vector_page),
            fresh_keep=_int32(finished.fresh_keep),
            fresh_page=_int32(finished.fresh_page),
        )

    @property
    def _page_rows(self) -> int:
        return self._cache.page_rows


@dataclass(frozen=True, slots=True)
class _Columns:
    """The windows of a batch, joined: `start` [B + 1]."""

    item: Int64
    action: Int64
    time: Int64
    start: Int64

    @classmethod
    def of(cls, requests: Sequence[InferRequest]) -> _Columns:
        return cls(
            np.concatenate([request.history_item for request in requests], dtype=np.int64),
            np.concatenate([request.history_action for request in requests], dtype=np.int64),
            np.concatenate([request.history_time for request in requests], dtype=np.int64),
            _starts(np.fromiter((len(request.history_item) for request in requests), np.int64, len(requests))),
        )

    def buckets(self) -> Int64:
        """Gap to the row before, FIRST where a window begins."""
        gap = np.empty(len(self.time), np.int64)
        gap[1:] = gap_buckets(self.time[1:] - self.time[:-1])
        begins = self.start[:-1]
        gap[begins[begins < self.start[1:]]] = FIRST
        return gap


@dataclass(frozen=True, slots=True)
class _Finished:
    """See `Step`."""

    keep: Int64
    last: Int64
    vector_page: Int64
    fresh_keep: Int64
    fresh_page: Int64

    @classmethod
    def of(cls, placed: Sequence[Placement], candidates: int, row: Int64) -> _Finished:
        keep: list[int] = []
        last, vector_page = [NOWHERE] * len(placed), [NOWHERE] * len(placed)
        fresh: dict[int, int] = {}  # a page's state is written once, by the last that built it
        for b, placement in enumerate(placed):
            if not placement.pages:
                continue
            vector_page[b] = placement.pages[0]
            if placement.first < placement.length:
                last[b] = candidates + len(keep)
                keep.append(candidates + int(row[b + 1]) - 1)
                if placement.write_from < placement.length:
                    fresh[placement.pages[0]] = last[b]
            elif placement.builder is not None:
                last[b] = last[placement.builder]
        kept = np.concatenate((np.arange(candidates), np.asarray(keep, np.int64)))
        return cls(kept, *(np.asarray(x, np.int64) for x in (last, vector_page, [*fresh.values()], [*fresh])))


def gap_buckets(seconds: Int64) -> Int64:
    """`embedding.gap_bucket` in numpy: a float's exponent is 1 + floor(log2(x))."""
    exponent = np.frexp(np.maximum(seconds, 0).astype(np.float64) + 1.0)[1]
    return np.minimum(exponent.astype(np.int64), GAP_BUCKETS - 1)


def _windowed(request: InferRequest, cap: int) -> InferRequest:
    if len(request.history_item) <= cap:
        return request
    hashes = row_hashes(request.history_item, request.history_action, request.history_time)
    return request.newest(len(hashes) - window_start(hashes, cap))


def _joined_candidates(parts: Sequence[Part]) -> Int64:
    empty = np.empty(0, np.int32)
    return np.concatenate(
        [empty if part.request.candidate is None else part.request.candidate[: part.candidates] for part in parts],
        dtype=np.int64,
    )


def _candidate_buckets(parts: Sequence[Part], columns: _Columns) -> Int64:
    """[B]: time from the last event to the request; FIRST without one."""
    asked = np.fromiter((part.request.request_time_s for part in parts), np.int64, len(parts))
    if len(columns.time) == 0:
        return np.full(len(parts), FIRST, np.int64)
    last = columns.time[np.maximum(columns.start[1:] - 1, 0)]
    empty = columns.start[1:] == columns.start[:-1]
    return np.where(empty, FIRST, gap_buckets(asked - last))


def _starts(lengths: npt.NDArray[np.integer]) -> Int64:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _int32(column: npt.NDArray[np.integer]) -> torch.Tensor:
    return torch.from_numpy(column.astype(np.int32))
