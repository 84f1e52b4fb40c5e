"""The architecture of one model, as it stands in its manifest. Shapes only: nothing about training or serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from shared.errors import ConfigurationError

ACTION_CODES = 128
"""Codes are INT8 and never negative (0: none); the row after the last one marks a candidate."""
GAP_BUCKETS = 34
"""0: no event before; 1 + floor(log2(1 + gap in s)) otherwise, so bucket 33 begins at 136 years."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Names follow Hugging Face's DeepSeek-V3 configuration where it has them; `q_lora_rank` None: one matrix.

    The feed-forward of layer i is dense SwiGLU (`intermediate_size`) for i < `first_k_dense_replace` or when
    `n_routed_experts` is 0, else DeepSeekMoE. `actions` are the codes that have an output head, in column order.
    """

    vocabulary: int
    actions: tuple[int, ...]
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 2
    q_lora_rank: int | None = None
    kv_lora_rank: int = 32
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    ffn: Literal["dense", "moe"] = "dense"
    intermediate_size: int = 128
    first_k_dense_replace: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    content_tokens: int = 8
    content_vocabulary: int = 4096
    max_history: int = 200
    mtp_depth: int = 1
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    item_bias: bool = False
    dropout: float = 0.0

    @property
    def vector_dim(self) -> int:
        """D of user and item vectors; an item's bias is one more dimension, where the user vector is 1."""
        return self.d_model + int(self.item_bias)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe_layer(self, layer: int) -> bool:
        return self.ffn == "moe" and layer >= self.first_k_dense_replace

    def validate(self) -> Self:
        """Returns itself. Raises ConfigurationError that names the field and the rule it breaks."""
        positive = ["vocabulary", "d_model", "n_layers", "n_heads", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim"]
        positive += ["intermediate_size", "max_history", "content_vocabulary"]
        for name in positive:
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim must be even: RoPE rotates pairs")
        _require(self.qk_nope_head_dim >= 0, "qk_nope_head_dim must not be negative")
        _require(self.content_tokens >= 0, "content_tokens must not be negative")
        _require(self.q_lora_rank is None or self.q_lora_rank >= 1, "q_lora_rank must be empty or at least 1")
        _require(self.mtp_depth in (0, 1), "mtp_depth must be 0 or 1")
        _require(0.0 <= self.dropout < 1.0, "dropout must lie in [0, 1)")
        _require(bool(self.actions), "actions must name at least one head")
        _require(len(set(self.actions)) == len(self.actions), "actions must not repeat a code")
        _require(all(0 < code < ACTION_CODES for code in self.actions), f"actions must lie in 1..{ACTION_CODES - 1}")
        if self.ffn == "moe":
            _require(self.n_routed_experts >= 2, "n_routed_experts must be at least 2 when ffn is moe")
            _require(self.moe_intermediate_size >= 1, "moe_intermediate_size must be at least 1 when ffn is moe")
            top, experts = self.num_experts_per_tok, self.n_routed_experts
            _require(1 <= top <= experts, f"num_experts_per_tok must lie in 1..{experts}, not {top}")
        return self

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "actions": list(self.actions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ConfigurationError on unknown or missing names: a model of a newer format is refused, not guessed."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        _require(not unknown, f"unknown architecture fields {', '.join(unknown)}: another version made this model")
        try:
            return cls(**{**values, "actions": tuple(values["actions"])}).validate()
        except (TypeError, KeyError) as error:
            raise ConfigurationError(f"the architecture is incomplete: {error}") from None


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigurationError(f"model architecture: {rule}")
