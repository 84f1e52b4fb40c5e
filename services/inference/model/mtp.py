"""Multi-token prediction, depth 1 (DeepSeek-V3, section 2.2): trained beside the ranker, dropped afterwards.

h'_i = block(M [RMSNorm(h_i) ; RMSNorm(e_{i+1})])       predicts item i+2 through the shared item vectors
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.inference.model.attention import Layout
from services.inference.model.config import ModelConfig
from services.inference.model.layers import Linear, RMSNorm, rotary_table
from services.inference.model.ranker import Block


class MultiTokenPrediction(nn.Module):
    """Names as in DeepSeek-V3's checkpoints (hnorm, enorm, eh_proj). Its block is dense: it is no part of serving."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.hnorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.enorm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.d_model, config.d_model)
        self.block = Block(config, -1)
        self.norm = RMSNorm(config.d_model, config.rms_norm_eps)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(self, states: Tensor, following: Tensor, layout: Layout) -> Tensor:
        """`states` [T, d] before the final norm, `following` [T, d] the item vector of row i+1; [T, d] after the norm.

        Causal like the trunk: row i sees items up to i+1 only. The last row of a segment has no row after it; its
        output must be left out of the loss.
        """
        merged = self.eh_proj(torch.cat((self.hnorm(states), self.enorm(following)), dim=-1))
        rotary = rotary_table(layout.position, self.config.qk_rope_head_dim, self.config.rope_theta)
        predicted: Tensor = self.norm(self.block(merged, rotary, layout))
        return predicted
