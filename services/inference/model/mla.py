"""Multi-head latent attention (DeepSeek-V2, section 2.1; names as in Hugging Face's DeepseekV3Attention)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.inference.model.attention import Layout, attend
from services.inference.model.config import DecoderConfig
from services.inference.model.layers import Linear, RMSNorm, rotate
from services.inference.model.rope import attention_scale


class MultiHeadLatentAttention(nn.Module):
    """What a row leaves behind is its latent [kv_lora_rank] and one rotary key [rope] that all heads share.

    Keys and values are expanded from the latent; the rotary part is decoupled, because a rotation between query and
    latent could not be absorbed into the projections.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        self.nope, self.rope, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank = config.kv_lora_rank
        self.scale = attention_scale(config)
        eps = config.rms_norm_eps if config.latent_norm_eps is None else config.latent_norm_eps
        width = config.n_heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.d_model, width)
        else:
            self.q_a_proj = Linear(config.d_model, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
            self.q_b_proj = Linear(config.q_lora_rank, width)
        self.has_q_lora = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = Linear(config.d_model, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, config.n_heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(config.n_heads * config.v_head_dim, config.d_model)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """x [N, d]; `rotary` cos and sin [N, rope/2]; returns [N, d]."""
        query = self.queries(x, rotary)
        latent, shared_key = self.latents(x, rotary)
        key, value = self.expand(latent, shared_key)
        output: Tensor = self.o_proj(attend(query, key, value, layout, self.scale).flatten(1))
        return output

    def queries(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """[N, H, nope + rope]."""
        flat = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.has_q_lora else self.q_proj(x)
        query = flat.view(-1, self.heads, self.nope + self.rope)
        return torch.cat((query[..., : self.nope], rotate(query[..., self.nope :], *rotary)), dim=-1)

    def latents(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised latents [N, rank] and rotated shared keys [N, rope]: all that a cache needs to keep."""
        down = self.kv_a_proj_with_mqa(x)
        return self.kv_a_layernorm(down[:, : self.rank]), rotate(down[:, self.rank :], *rotary)

    def expand(self, latent: Tensor, shared_key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [N, H, nope + rope] and values [N, H, v]."""
        up = self.kv_b_proj(latent).view(-1, self.heads, self.nope + self.v_dim)
        rotary_key = shared_key[:, None, :].expand(-1, self.heads, -1)
        return torch.cat((up[..., : self.nope], rotary_key), dim=-1), up[..., self.nope :]
