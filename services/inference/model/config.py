"""The architecture of one model, as it stands in its manifest. Shapes only: nothing about training or serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from shared.errors import ConfigurationError

ScoringFunc = Literal["sigmoid", "softmax"]
TopkMethod = Literal["noaux_tc", "greedy", "group_limited_greedy"]

ACTION_CODES = 128
"""Codes are INT8 and never negative (0: none); the row after the last one marks a candidate."""
GAP_BUCKETS = 34
"""0: no event before; 1 + floor(log2(1 + gap in s)) otherwise, so bucket 33 begins at 136 years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """YaRN (Peng et al. 2023), names and defaults as in Hugging Face's `rope_parameters`.

    `attention_factor` None: it follows from `factor` and the two mscales. `mscale_all_dim` None: the scores' scale is
    not corrected, as in DeepSeek's code.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    def validate(self) -> None:
        _require(self.factor > 0, f"rope_scaling.factor must be above 0, not {self.factor}")
        length = self.original_max_position_embeddings
        _require(length >= 1, f"rope_scaling.original_max_position_embeddings must be at least 1, not {length}")
        fast, slow = self.beta_fast, self.beta_slow
        _require(
            fast >= slow > 0, f"rope_scaling.beta_fast {fast} must not lie below beta_slow {slow}, nor that below 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A stack of DeepSeek layers, whatever feeds it. Names follow Hugging Face's DeepSeek configurations where they
    have them; `q_lora_rank` None: one matrix; `latent_norm_eps` None: `rms_norm_eps` inside attention too.

    The feed-forward of layer i is dense SwiGLU (`intermediate_size`) for i < `first_k_dense_replace` or when
    `n_routed_experts` is 0, else DeepSeekMoE. `topk_method`: `greedy` takes the best scores, `group_limited_greedy`
    those of the `topk_group` groups of experts with the best single score (DeepSeek-V2), `noaux_tc` those of the groups
    with the best two, a bias counted in (V3; with one group: all of them).
    """

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
    scoring_func: ScoringFunc = "sigmoid"
    topk_method: TopkMethod = "noaux_tc"
    n_group: int = 1
    topk_group: int = 1
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    latent_norm_eps: float | None = None
    initializer_range: float = 0.02
    dropout: float = 0.0

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe_layer(self, layer: int) -> bool:
        return self.ffn == "moe" and layer >= self.first_k_dense_replace

    def validate(self) -> Self:
        """Returns itself. Raises ConfigurationError that names the field and the rule it breaks."""
        positive = ("d_model", "n_layers", "n_heads", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim")
        require_positive(self, (*positive, "intermediate_size"))
        _require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim must be even: RoPE rotates pairs")
        _require(self.qk_nope_head_dim >= 0, "qk_nope_head_dim must not be negative")
        _require(self.q_lora_rank is None or self.q_lora_rank >= 1, "q_lora_rank must be empty or at least 1")
        _require(0.0 <= self.dropout < 1.0, "dropout must lie in [0, 1)")
        if self.rope_scaling is not None:
            self.rope_scaling.validate()
            _require(self.rope_theta > 1, f"rope_theta must be above 1 with rope_scaling, not {self.rope_theta}")
        if self.ffn == "moe":
            self._validate_experts()
        return self

    def _validate_experts(self) -> None:
        _require(self.n_routed_experts >= 2, "n_routed_experts must be at least 2 when ffn is moe")
        _require(self.moe_intermediate_size >= 1, "moe_intermediate_size must be at least 1 when ffn is moe")
        _require(self.scoring_func in get_args(ScoringFunc), f"scoring_func {self.scoring_func!r} is not known")
        _require(self.topk_method in get_args(TopkMethod), f"topk_method {self.topk_method!r} is not known")
        top, experts, groups = self.num_experts_per_tok, self.n_routed_experts, self.n_group
        _require(1 <= top <= experts, f"num_experts_per_tok must lie in 1..{experts}, not {top}")
        if self.topk_method == "greedy":
            return
        _require(groups >= 1 and experts % groups == 0, f"n_group must divide {experts} experts, {groups} does not")
        _require(1 <= self.topk_group <= groups, f"topk_group must lie in 1..{groups}, not {self.topk_group}")
        size = experts // groups
        _require(self.topk_method != "noaux_tc" or size >= 2, "n_group must leave 2 experts a group for noaux_tc")
        reach = self.topk_group * size
        _require(top <= reach, f"num_experts_per_tok {top} is more than the {reach} experts of topk_group groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(DecoderConfig):
    """The ranker: the decoder and what embeds events and scores candidates. `actions` are the codes that have an output
    head, in column order."""

    vocabulary: int
    actions: tuple[int, ...]
    content_tokens: int = 8
    content_vocabulary: int = 4096
    max_history: int = 200
    mtp_depth: int = 1
    item_bias: bool = False

    @property
    def vector_dim(self) -> int:
        """D of user and item vectors; an item's bias is one more dimension, where the user vector is 1."""
        return self.d_model + int(self.item_bias)

    def validate(self) -> Self:
        """Returns itself. Raises ConfigurationError that names the field and the rule it breaks."""
        DecoderConfig.validate(self)  # super() does not reach through a dataclass with slots
        require_positive(self, ("vocabulary", "max_history", "content_vocabulary"))
        _require(self.content_tokens >= 0, "content_tokens must not be negative")
        _require(self.mtp_depth in (0, 1), "mtp_depth must be 0 or 1")
        _require(bool(self.actions), "actions must name at least one head")
        _require(len(set(self.actions)) == len(self.actions), "actions must not repeat a code")
        _require(all(0 < code < ACTION_CODES for code in self.actions), f"actions must lie in 1..{ACTION_CODES - 1}")
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
            scaling = values.get("rope_scaling")
            given = {**values, "actions": tuple(values["actions"])}
            return cls(**{**given, "rope_scaling": None if scaling is None else RopeScaling(**scaling)}).validate()
        except (TypeError, KeyError) as error:
            raise ConfigurationError(f"the architecture is incomplete: {error}") from None


def require_positive(config: DecoderConfig, names: Sequence[str]) -> None:
    for name in names:
        _require(getattr(config, name) >= 1, f"{name} must be at least 1, not {getattr(config, name)}")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigurationError(f"model architecture: {rule}")
