"""A model's weights as one serving pass wants them: fewer, larger products, rotary halves side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.inference.model.layers import SwiGLU
from services.inference.model.mla import MultiHeadLatentAttention
from services.inference.model.moe import DeepseekMoE, Gate
from services.inference.model.ranker import Block

_FUSE_WITHIN = 2
"""Absorbed projections become one matrix where H * rank is at most so many times d: at d 64 (H 2, rank 32) that saves
two products a layer, at d 1024 (H 16, rank 256) it would read 2.6 times the weights."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedDense:
    """`gate_up` [2I, d], `down` [d, I]."""

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PackedMoE:
    """`gate` keeps its fp32 weight; `gate_up` [E, 2I, d], `down` [E, d, I]."""

    gate: Gate
    gate_up: Tensor
    down: Tensor
    shared: PackedDense | None


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayer:
    """`entry` [Q + rank + rope, d]: queries (with q-LoRA their down-projection) and latents in one product. `key_up`
    [H, nope, rank] and `value_up` [H, v, rank] are the halves of `kv_up` [H * (nope + v), rank]. `absorbed_entry`
    [H * (rank + rope) + rank + rope, d] and `absorbed_out` [d, H * rank]: the same with `kv_up` multiplied in, where
    that pays."""

    heads: int
    nope: int
    rope: int
    v_dim: int
    rank: int
    scale: float
    eps: float
    latent_eps: float
    attention_norm: Tensor
    ffn_norm: Tensor
    kv_norm: Tensor
    entry: Tensor
    q_norm: Tensor | None
    q_up: Tensor | None
    kv_up: Tensor
    key_up: Tensor
    value_up: Tensor
    out: Tensor
    absorbed_entry: Tensor | None
    absorbed_out: Tensor | None
    ffn: PackedDense | PackedMoE

    @property
    def width(self) -> int:
        """Of a latent row."""
        return self.rank + self.rope

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> PackedLayer:
        mla = block.self_attn
        split = mla.kv_b_proj.weight.view(mla.heads, mla.nope + mla.v_dim, mla.rank)
        key_up, value_up = split[:, : mla.nope], split[:, mla.nope :]
        query = mla.q_b_proj.weight if mla.has_q_lora else mla.q_proj.weight
        query = _rotary_halves(query, mla.heads, mla.nope, mla.rope)
        down = _rotary_halves(mla.kv_a_proj_with_mqa.weight, 1, mla.rank, mla.rope)
        absorbed = _absorbed(mla, query, down, key_up, value_up)
        return cls(
            heads=mla.heads,
            nope=mla.nope,
            rope=mla.rope,
            v_dim=mla.v_dim,
            rank=mla.rank,
            scale=mla.scale,
            eps=block.input_layernorm.eps,
            latent_eps=mla.kv_a_layernorm.eps,
            attention_norm=block.input_layernorm.weight.to(dtype),
            ffn_norm=block.post_attention_layernorm.weight.to(dtype),
            kv_norm=mla.kv_a_layernorm.weight.to(dtype),
            entry=torch.cat((mla.q_a_proj.weight if mla.has_q_lora else query, down)).to(dtype),
            q_norm=mla.q_a_layernorm.weight.to(dtype) if mla.has_q_lora else None,
            q_up=query.to(dtype) if mla.has_q_lora else None,
            kv_up=mla.kv_b_proj.weight.to(dtype),
            key_up=key_up.to(dtype).contiguous(),
            value_up=value_up.to(dtype).contiguous(),
            out=mla.o_proj.weight.to(dtype),
            absorbed_entry=None if absorbed is None else absorbed[0].to(dtype),
            absorbed_out=None if absorbed is None else absorbed[1].to(dtype),
            ffn=_feed_forward(block.mlp, dtype),
        )


def _rotary_halves(weight: Tensor, groups: int, plain: int, rope: int) -> Tensor:
    """Of each group of `plain + rope` output rows the rotary ones, (x0, x1), (x2, x3)…, become x0, x2… then x1, x3…:
    what `rotate` gives, without a stride of two at every row of every pass."""
    split = weight.view(groups, plain + rope, weight.shape[1])
    parts = (split[:, :plain], split[:, plain::2], split[:, plain + 1 :: 2])
    return torch.cat(parts, dim=1).flatten(0, 1)


def _absorbed(
    mla: MultiHeadLatentAttention, query: Tensor, down: Tensor, key_up: Tensor, value_up: Tensor
) -> tuple[Tensor, Tensor] | None:
    """q . (K c) = (K^T q) . c, and O (V c) = (O V) c (DeepSeek-V2, section 2.1.2)."""
    if mla.has_q_lora or mla.heads * mla.rank > _FUSE_WITHIN * query.shape[1]:
        return None
    split = query.view(mla.heads, mla.nope + mla.rope, -1)
    lifted = torch.einsum("hnr,hnd->hrd", key_up, split[:, : mla.nope])
    entry = torch.cat((lifted, split[:, mla.nope :]), dim=1).flatten(0, 1)
    out = torch.einsum("dhv,hvr->dhr", mla.o_proj.weight.view(-1, mla.heads, mla.v_dim), value_up)
    return torch.cat((entry, down)), out.flatten(1)


def _feed_forward(mlp: SwiGLU | DeepseekMoE, dtype: torch.dtype) -> PackedDense | PackedMoE:
    if isinstance(mlp, SwiGLU):
        return _dense(mlp, dtype)
    experts, shared = mlp.experts, mlp.shared_experts
    return PackedMoE(
        mlp.gate,
        experts.gate_up_proj.to(dtype),
        experts.down_proj.to(dtype),
        None if shared is None else _dense(shared, dtype),
    )


def _dense(mlp: SwiGLU, dtype: torch.dtype) -> PackedDense:
    return PackedDense(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).to(dtype), mlp.down_proj.weight.to(dtype))
