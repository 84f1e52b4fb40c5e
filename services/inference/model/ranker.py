"""The ranker: one set of weights that encodes histories for retrieval and scores candidates for ranking.

    rows (history, then candidates) -> embedding -> [RMSNorm, MLA, RMSNorm, feed-forward] x n_layers -> RMSNorm
    user_vector        = state of the user's last row
    logit_a(candidate) = slope_a * user_vector . item_vector + offset_a + head_a(candidate's own state)

The first summand is what retrieval ranks by, and the heads begin at zero, so ranking begins at retrieval's quality and
training can only add what the candidate's attention to the history finds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch, RankerOutput
from services.inference.model.config import DecoderConfig, ModelConfig
from services.inference.model.embedding import (
    CANDIDATE,
    FIRST,
    EventEmbedding,
    ItemEmbedding,
    gap_bucket,
    history_buckets,
)
from services.inference.model.layers import Linear, RMSNorm, SwiGLU, rotary_table
from services.inference.model.mla import MultiHeadLatentAttention
from services.inference.model.moe import DeepseekMoE, Gate


class Block(nn.Module):
    """Pre-norm; `layer` decides between dense and mixture (`config.is_moe_layer`)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.mlp = (
            DeepseekMoE(config) if config.is_moe_layer(layer) else SwiGLU(config.d_model, config.intermediate_size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotary, layout))
        grown: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return grown


class ActionHeads(nn.Module):
    """slope and offset of the next-item logit, and the residual of the candidate's own state, a column an action."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count = len(config.actions)
        self.slope = nn.Parameter(torch.ones(count))
        self.offset = nn.Parameter(torch.zeros(count))
        self.residual = Linear(config.d_model, count)

    def forward(self, base: Tensor, state: Tensor) -> Tensor:
        """base [C], state [C, d] to logits [C, A]."""
        residual: Tensor = self.residual(state)
        return base[:, None] * self.slope + self.offset + residual


class Ranker(nn.Module):
    """See the module's text. `forward` serves; `states` and `item_vectors` are what training builds its losses from."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.validate()
        self.items = ItemEmbedding(config)
        self.events = EventEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.cold = nn.Parameter(torch.zeros(config.d_model))
        self.item_bias = nn.Parameter(torch.zeros(config.vocabulary + 1)) if config.item_bias else None
        self.heads = ActionHeads(config)
        self.apply(self._initialise)
        nn.init.zeros_(self.heads.residual.weight)

    def forward(self, batch: PackedBatch) -> RankerOutput:
        """Scores of a request do not depend on the batch around it nor on its other candidates (within 1e-5, fp32)."""
        layout = Layout.of(batch)
        table = self.items.table()
        rows = self.norm(self.states(batch, layout, table))
        user = self._last_state(rows, batch)
        owner = self.owners(batch, layout)
        wanted = self.items.known(batch.candidate_item)
        base = (user.index_select(0, owner) * table.index_select(0, wanted)).sum(-1)
        if self.item_bias is not None:
            base = base + self.item_bias.index_select(0, wanted)
            user = functional.pad(user, (0, 1), value=1.0)
        logits = self.heads(base, rows[layout.rows :])
        return RankerOutput(user.float(), logits.float())

    def states(self, batch: PackedBatch, layout: Layout, table: Tensor) -> Tensor:
        """[T + C, d] after the last layer and before the final norm: history rows, then candidates."""
        x = self.dropout(self._embed(batch, layout, table))
        config = self.config
        rotary = rotary_table(layout.position, config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        for layer in self.layers:
            x = layer(x, rotary, layout)
        hidden: Tensor = x
        return hidden

    def item_vectors(self) -> Tensor:
        """[V, D] float32, in the space of `user_vector` (inner product)."""
        vectors = self.items.table()[:-1]
        if self.item_bias is not None:
            vectors = torch.cat((vectors, self.item_bias[:-1, None]), dim=1)
        return vectors.float()

    def owners(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """[C], the request each candidate belongs to."""
        counts = batch.candidate_offset[1:] - batch.candidate_offset[:-1]
        request = torch.arange(batch.requests, device=counts.device)
        return request.repeat_interleave(counts, output_size=layout.candidate_start[-1])

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def gates(self) -> list[Gate]:
        return [module for module in self.modules() if isinstance(module, Gate)]

    def _embed(self, batch: PackedBatch, layout: Layout, table: Tensor) -> Tensor:
        bucket = history_buckets(batch.history_time, batch.history_offset)
        item, action = batch.history_item, batch.history_action
        if layout.candidate_start[-1]:
            marker = batch.candidate_item.new_full(batch.candidate_item.shape, CANDIDATE)
            item = torch.cat((item, batch.candidate_item))
            action = torch.cat((action, marker))
            bucket = torch.cat((bucket, self._candidate_buckets(batch, layout)))
        rows: Tensor = table.index_select(0, self.items.known(item)) + self.events(action, bucket)
        return rows

    def _candidate_buckets(self, batch: PackedBatch, layout: Layout) -> Tensor:
        """Time from the last row a candidate sees to its request; FIRST when it sees none."""
        owner = self.owners(batch, layout)
        start = batch.history_offset[:-1].index_select(0, owner)
        seen = layout.position[layout.rows :]
        if layout.rows == 0:
            return torch.zeros_like(seen)
        last = batch.history_time.index_select(0, (start + seen - 1).clamp(min=0))
        now = batch.request_time
        # Training places several candidates along one history, each at the time of its own request.
        asked = now if batch.candidate_prefix is not None else now.index_select(0, owner)
        return gap_bucket(asked - last).masked_fill(seen == 0, FIRST)

    def _last_state(self, rows: Tensor, batch: PackedBatch) -> Tensor:
        last = (batch.history_offset[1:] - 1).clamp(min=0)
        empty = (batch.history_offset[1:] == batch.history_offset[:-1])[:, None]
        if rows.shape[0] == 0:
            return self.cold.expand(batch.requests, -1)
        return torch.where(empty, self.cold, rows.index_select(0, last))

    def _initialise(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and not name.startswith("item_bias"):
                nn.init.normal_(parameter, std=self.config.initializer_range)
