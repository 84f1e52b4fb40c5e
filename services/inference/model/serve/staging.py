"""A step on its way to a CUDA device: one pinned buffer, one copy, whatever the number of columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.inference.model.serve.step import NOWHERE, Step
from services.inference.model.serve.tiles import tiles_of

ABSORBED_TILE, EXPANDED_TILE = 16, 64
_ALIGNED = 4
"""int32 columns begin at 16 bytes, as vector loads want them."""


@dataclass(frozen=True, slots=True, eq=False)
class StagedStep(Step):
    """`limit` [N] and `keep_limit` [K]: history rows that a row sees (a new row itself is one of them); `tile`
    [4, tiles] and `last_tile`: see `tiles_of`; `absorbed`: which way attention runs."""

    limit: Tensor
    keep_limit: Tensor
    tile: Tensor
    last_tile: Tensor
    absorbed: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a staged step: rows, pages, requests, tiles; at least what the step needs, for a captured graph more."""

    rows: int
    candidates: int
    pages: int
    requests: int
    kept: int
    written: int
    tiles: int
    last_tiles: int

    def sizes(self) -> dict[str, int]:
        """Of the columns, in the order of the buffer."""
        return {
            "item": self.rows,
            "action": self.rows,
            "bucket": self.rows,
            "position": self.rows,
            "slot": self.rows,
            "limit": self.rows,
            "page": self.pages,
            "owner": self.candidates,
            "keep": self.kept,
            "keep_limit": self.kept,
            "last": self.requests,
            "vector_page": self.requests,
            "fresh_keep": self.written,
            "fresh_page": self.written,
            "tile": 4 * self.tiles,
            "last_tile": 4 * self.last_tiles,
        }


class Columns:
    """The host's side of a step: named int32 arrays, ready to be laid into a buffer."""

    def __init__(self, step: Step, page_rows: int, *, absorbed: bool, trash_page: int) -> None:
        self.absorbed = absorbed
        self._trash_page = trash_page
        segments = self._segments = step.segments
        tile_rows = ABSORBED_TILE if absorbed else EXPANDED_TILE
        names = ("item", "action", "bucket", "position", "slot", "page", "owner", "keep", "last", "vector_page")
        found = {name: getattr(step, name).numpy() for name in (*names, "fresh_keep", "fresh_page")}
        limit = found["position"].copy()
        limit[segments.candidates :] += 1
        found |= {"limit": limit, "keep_limit": limit[found["keep"]]}
        self._tiles = {
            "tile": tiles_of(segments, page_rows, tile_rows, last=False),
            "last_tile": tiles_of(segments, page_rows, tile_rows, last=True),
        }
        self._found: dict[str, npt.NDArray[np.int32]] = found

    def shape(self) -> Shape:
        found = self._found
        return Shape(
            rows=len(found["item"]),
            candidates=len(found["owner"]),
            pages=len(found["page"]),
            requests=len(found["last"]),
            kept=len(found["keep"]),
            written=len(found["fresh_page"]),
            tiles=self._tiles["tile"].shape[1],
            last_tiles=self._tiles["last_tile"].shape[1],
        )

    def fill(self, buffer: npt.NDArray[np.int32], shape: Shape) -> None:
        """Lays the columns into `buffer` [buffer_size(shape)]; what `shape` has beyond them does no harm: rows that see
        nothing and are written nowhere, tiles without rows, states for the trash page."""
        beyond = {"slot": NOWHERE, "last": NOWHERE, "vector_page": NOWHERE, "fresh_page": self._trash_page}
        begin = 0
        for name, size in shape.sizes().items():
            target = buffer[begin : begin + size]
            if name in self._tiles:
                given = self._tiles[name]
                wide = target.reshape(4, -1)
                wide[:, : given.shape[1]] = given
                wide[:, given.shape[1] :] = 0
            else:
                column = self._found[name]
                target[: len(column)] = column
                target[len(column) :] = beyond.get(name, 0)
            begin += _padded(size)

    def step_over(self, buffer: Tensor, shape: Shape) -> StagedStep:
        """Views of a filled device buffer."""
        views, begin = {}, 0
        for name, size in shape.sizes().items():
            views[name] = buffer[begin : begin + size]
            begin += _padded(size)
        tile, last_tile = views.pop("tile").view(4, -1), views.pop("last_tile").view(4, -1)
        return StagedStep(segments=self._segments, tile=tile, last_tile=last_tile, absorbed=self.absorbed, **views)


def buffer_size(shape: Shape) -> int:
    return sum(_padded(size) for size in shape.sizes().values())


def stage(columns: Columns, device: torch.device) -> StagedStep:
    shape = columns.shape()
    pinned = torch.empty(buffer_size(shape), dtype=torch.int32, pin_memory=device.type == "cuda")
    columns.fill(pinned.numpy(), shape)
    return columns.step_over(pinned.to(device, non_blocking=True), shape)


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
