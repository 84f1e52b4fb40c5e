"""From item_index, action and gap to the rows that enter the first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.model.config import ACTION_CODES, GAP_BUCKETS, ModelConfig

CANDIDATE = ACTION_CODES
"""The action row of a candidate: nothing has happened to it yet."""
FIRST = 0
"""The gap bucket of a row without a row before it."""


class ItemEmbedding(nn.Module):
    """An item is its own row plus the mean of its content tokens; beyond the vocabulary it is the unknown row alone.

    `content` [V+1, K] int64 (0: no token) is frozen with the model, so that cached states stay valid.
    """

    content: Tensor
    frozen: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocabulary = config.vocabulary
        self.item = nn.Embedding(config.vocabulary + 1, config.d_model)
        self.token = nn.Embedding(config.content_vocabulary, config.d_model)
        shape = (config.vocabulary + 1, config.content_tokens)
        self.register_buffer("content", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("frozen", None, persistent=False)

    def known(self, item: Tensor) -> Tensor:
        """item_index to table rows: what lies outside the vocabulary is row V."""
        outside = (item < 0) | (item >= self.vocabulary)
        return item.masked_fill(outside, self.vocabulary)

    def table(self) -> Tensor:
        """[V+1, d], every item's vector; the unknown one last."""
        if self.frozen is not None:
            return self.frozen
        weight = self.item.weight
        if self.content.shape[1] == 0:
            return weight
        real = (self.content > 0).to(weight.dtype)
        share = real / real.sum(1, keepdim=True).clamp(min=1.0)
        return weight + functional.embedding_bag(
            self.content, self.token.weight, mode="sum", per_sample_weights=share.to(weight.dtype)
        )

    @torch.no_grad()
    def freeze(self) -> None:
        """Computes the table once, for serving: gathering K tokens a row costs more than a layer."""
        self.frozen = None
        self.frozen = self.table().detach().clone()

    def thaw(self) -> None:
        self.frozen = None


class EventEmbedding(nn.Module):
    """Actions and gaps. A gap is the time to the user's previous event, never to now, so that a row's state lasts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.action = nn.Embedding(ACTION_CODES + 1, config.d_model)
        self.gap = nn.Embedding(GAP_BUCKETS, config.d_model)

    def forward(self, action: Tensor, bucket: Tensor) -> Tensor:
        both: Tensor = self.action(action.clamp(0, CANDIDATE)) + self.gap(bucket)
        return both


def gap_bucket(seconds: Tensor) -> Tensor:
    """1 + floor(log2(1 + gap)); a clock that ran backwards counts as no gap. int64 of the same shape.

    float64: float32 rounds 2^k - 1 up from k = 25 on, and a bucket must not depend on the device.
    """
    exact = seconds.clamp(min=0).to(torch.float64)
    return (torch.log2(exact + 1.0).to(torch.int64) + 1).clamp(max=GAP_BUCKETS - 1)


def history_buckets(time: Tensor, offset: Tensor) -> Tensor:
    """Buckets [T] of packed times [T]; FIRST where a request begins."""
    bucket = torch.zeros_like(time)
    bucket[1:] = gap_bucket(time[1:] - time[:-1])
    starts = offset[:-1]
    has_rows = offset[1:] > starts  # an empty request starts at another's row, or behind the last
    return bucket.index_fill(0, starts[has_rows], FIRST)
