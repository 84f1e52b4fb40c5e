"""The ranker as it serves: `Ranker`'s arithmetic over new rows, beside the latents of earlier passes in a store."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from services.inference.model.layers import rotary_table
from services.inference.model.ranker import Ranker
from services.inference.model.serve.step import LatentStore, Step, StepOutput
from services.inference.model.serve.weights import PackedDense, PackedLayer, PackedMoE

EXTRA_ITEMS = 16_384
"""Rows for items that came after training: their content alone. 4 MB at d 64, 64 MB at d 2048 in bf16."""


class Ops(Protocol):
    """The arithmetic of a layer. `TorchOps` documents the calls. `absorb_below`: rows a request to compute, under which
    attention runs in the latents; measured at warm-up."""

    absorb_below: int

    def stage(self, step: Step, store: LatentStore) -> Step: ...

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...

    def attention(
        self, layer: PackedLayer, index: int, h: Tensor, rotary: Tensor, step: Step, store: LatentStore, *, last: bool
    ) -> Tensor: ...

    def feed_forward(self, ffn: PackedDense | PackedMoE, h: Tensor) -> Tensor: ...


class ServingRanker:
    """Scores of a request depend neither on the batch nor on its other candidates nor on which of its history's rows
    were cached (within 1e-4 in fp32). The last layer finishes only what is asked for, so a cold history costs a layer
    less."""

    def __init__(self, ranker: Ranker, *, dtype: torch.dtype, device: torch.device, ops: Ops) -> None:
        config = self.config = ranker.config
        self.dtype, self.device, self.ops = dtype, device, ops
        ranker = ranker.to(device).eval().requires_grad_(False)
        self.layers = [PackedLayer.of(block, dtype) for block in ranker.blocks()]
        table = ranker.items.table()
        extra = table[-1:].expand(EXTRA_ITEMS, -1)
        self.table = torch.cat((table, extra)).to(dtype)
        self.bias = None
        if ranker.item_bias is not None:
            self.bias = torch.cat((ranker.item_bias, ranker.item_bias[-1:].expand(EXTRA_ITEMS))).to(dtype)
        self._unknown, self._tokens = table[-1].clone(), ranker.items.token.weight
        self._action, self._gap = ranker.events.action.weight.to(dtype), ranker.events.gap.weight.to(dtype)
        self._norm, self._eps = ranker.norm.weight.to(dtype), ranker.norm.eps
        self._cold = ranker.cold.float()
        self._heads = ranker.heads.float()
        positions = torch.arange(config.max_history + 1, device=device)
        cos, sin = rotary_table(positions, config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        self._rotary = torch.cat((cos, sin), dim=1).to(dtype)

    @property
    def width(self) -> int:
        """Of a latent row."""
        return self.config.kv_lora_rank + self.config.qk_rope_head_dim

    def new_store(self, pages: int, page_rows: int) -> LatentStore:
        config = self.config
        shape = (config.n_layers, pages + 1, page_rows, self.width)
        return LatentStore(
            _zeros(shape, self.dtype, self.device),
            _zeros((pages + 1, config.d_model), torch.float32, self.device),
        )

    @torch.no_grad()
    def set_content(self, row: int, tokens: list[int]) -> None:
        """Gives table row `row` (beyond the vocabulary) its content. Not while a pass runs."""
        vector = self._unknown
        if tokens:
            vector = vector + self._tokens[torch.tensor(tokens, device=self.device)].mean(0)
        self.table[row] = vector.to(self.dtype)

    def forward(self, step: Step, store: LatentStore) -> StepOutput:
        """Writes the new rows' latents and the finished histories' states to `store`. `step` was staged."""
        rows = self._rows(step, store).float()
        user = self._user(step, rows, store)
        count = step.owner.shape[0]
        wanted = self.table.index_select(0, step.item[:count]).float()
        base = (user.index_select(0, step.owner) * wanted).sum(-1)
        if self.bias is not None:
            base = base + self.bias.index_select(0, step.item[:count]).float()
            user = torch.nn.functional.pad(user, (0, 1), value=1.0)
        logits: Tensor = self._heads(base, rows[:count])
        return StepOutput(user, logits)

    def _rows(self, step: Step, store: LatentStore) -> Tensor:
        """[K, d]: final states of the rows in `step.keep`."""
        if step.item.shape[0] == 0:  # every history is cached and nothing is ranked
            return self.table.new_empty((0, self.config.d_model))
        x = self.table.index_select(0, step.item)
        x = x + self._action.index_select(0, step.action) + self._gap.index_select(0, step.bucket)
        rotary = self._rotary.index_select(0, step.position)
        ops, final = self.ops, len(self.layers) - 1
        delta: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, h = ops.add_norm(x, delta, layer.attention_norm, layer.eps)
            delta = ops.attention(layer, index, h, rotary, step, store, last=index == final)
            if index == final:
                x = x.index_select(0, step.keep)
            x, h = ops.add_norm(x, delta, layer.ffn_norm, layer.eps)
            delta = ops.feed_forward(layer.ffn, h)
        return ops.add_norm(x, delta, self._norm, self._eps)[1]

    def _user(self, step: Step, rows: Tensor, store: LatentStore) -> Tensor:
        """[B, d] float32. What is known is read before what is new is written: another request of the same user may
        stand for an earlier end of the same history."""
        page = step.vector_page[:, None]
        known = store.state.index_select(0, step.vector_page.clamp(min=0))
        user = torch.where(page >= 0, known, self._cold)
        if step.last.shape[0] and rows.shape[0]:
            finished = rows.index_select(0, step.last.clamp(min=0))
            user = torch.where(step.last[:, None] >= 0, finished, user)
        if step.fresh_page.shape[0]:
            store.state.index_copy_(0, step.fresh_page.long(), rows.index_select(0, step.fresh_keep))
        return user


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the host from calloc, so that a page takes memory when it is first written: torch's own zeros write all of
    them, and 1 GiB for a few users was resident at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
