"""What one serving pass computes: C candidates, then R new history rows, of B requests, packed without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int32 = npt.NDArray[np.int32]
NOWHERE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Who owns what, on the host. Request b owns candidates `candidate[b]:candidate[b+1]`, new rows
    `row[b]:row[b+1]` (counted behind the candidates) and `page[b]:page[b+1]` of `Step.page`; its history is `length[b]`
    rows, the new ones last."""

    candidate: Int32
    row: Int32
    page: Int32
    length: Int32

    @property
    def requests(self) -> int:
        return len(self.length)

    @property
    def candidates(self) -> int:
        return int(self.candidate[-1])

    @property
    def rows(self) -> int:
        """Candidates and new rows, N."""
        return int(self.candidate[-1] + self.row[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """int32 everywhere. N rows: candidates first.

    `item` [N]: rows of the item table. `position` [N]: history rows before this one, for a candidate all of them; it
    is also the rotary position. `slot` [N]: where the row's latent is written (page * page_rows + offset), NOWHERE for
    candidates and for rows whose latent is there already. `page` [P]: pages of each request's history in order.
    `owner` [C]. `keep` [K]: rows that the last layer must finish: the candidates, then the last row of each request
    that has new ones. `last` [B]: the request's last row among `keep`; NOWHERE: its state is at `vector_page` [B]
    (NOWHERE: no history at all). `fresh_keep`, `fresh_page` [W]: states to write there.
    """

    segments: Segments
    item: Tensor
    action: Tensor
    bucket: Tensor
    position: Tensor
    slot: Tensor
    page: Tensor
    owner: Tensor
    keep: Tensor
    last: Tensor
    vector_page: Tensor
    fresh_keep: Tensor
    fresh_page: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StepOutput:
    """`user` [B, d] float32 (see `Ranker.user_vector`), `logits` [C, A] float32."""

    user: Tensor
    logits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LatentStore:
    """`latent` [layers, pages + 1, page_rows, rank + rope]; `state` [pages + 1, d] float32: the final state of a
    history's last row, kept at its first page. The page behind the last takes what nobody wants. Zeroed once: what a
    page held before is masked, and must be finite for that."""

    latent: Tensor
    state: Tensor

    @property
    def pages(self) -> int:
        return self.latent.shape[1] - 1

    @property
    def trash_page(self) -> int:
        return self.pages

    @property
    def page_rows(self) -> int:
        return self.latent.shape[2]

    @property
    def page_bytes(self) -> int:
        return self.latent[:, 0].numel() * self.latent.element_size() + self.state[0].numel() * 4
