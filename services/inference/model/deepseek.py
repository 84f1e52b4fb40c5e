"""A DeepSeek-V2 or V3 language model in the ranker's own modules: what proves them, and what text scoring needs.

tokens -> embedding -> [RMSNorm, MLA, RMSNorm, feed-forward] x n_layers -> RMSNorm -> lm_head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch
from services.inference.model.config import DecoderConfig, require_positive
from services.inference.model.layers import Linear, RMSNorm, rotary_table
from services.inference.model.ranker import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig(DecoderConfig):
    """`tie_word_embeddings`: the output matrix is the embedding's."""

    vocab_size: int
    tie_word_embeddings: bool = False

    def validate(self) -> Self:
        """Returns itself. Raises ConfigurationError that names the field and the rule it breaks."""
        DecoderConfig.validate(self)
        require_positive(self, ("vocab_size",))
        return self


class DeepseekForCausalLM(nn.Module):
    """Parameters are named as in Hugging Face's checkpoints, without the leading `model.`, experts stacked."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config = config.validate()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.lm_head = Linear(config.d_model, config.vocab_size)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Again after whatever gives parameters new memory, such as `to_empty`."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor, offset: Tensor) -> Tensor:
        """tokens [T] int64 of packed sequences, sequence b being `offset[b]:offset[b+1]`; logits [T, V] float32, row t
        for the token after t. A sequence's logits do not depend on the others (within 1e-5, fp32)."""
        logits: Tensor = self.lm_head(self.states(tokens, offset))
        return logits.float()

    def states(self, tokens: Tensor, offset: Tensor) -> Tensor:
        """[T, d] after the final norm."""
        layout, config = Layout.of(_histories(tokens, offset)), self.config
        rotary = rotary_table(layout.position, config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, rotary, layout)
        normed: Tensor = self.norm(x)
        return normed

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]


def _histories(tokens: Tensor, offset: Tensor) -> PackedBatch:
    """Tokens in the place of events, no candidates."""
    nothing, none = tokens.new_empty(0), torch.zeros_like(offset)
    return PackedBatch(tokens, nothing, nothing, offset, nothing, none, none[1:])
