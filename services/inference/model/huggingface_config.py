"""`config.json` of DeepSeek-V2 and V3 checkpoints, as an architecture of ours.

A field that would change the arithmetic is understood or refused by name. The families' defaults in transformers
differ, so the shapes must be written out; published checkpoints do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from services.inference.model.config import RopeScaling
from services.inference.model.deepseek import DeepseekConfig
from shared.errors import ArtifactError, ConfigurationError

_V2, _V3 = "deepseek_v2", "deepseek_v3"
_ONLY: dict[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "quantization_config": None,
}
"""Fields with one supported value, which an absent or null field means too."""
_ROPE = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}
_ROPE |= {"mscale", "mscale_all_dim", "attention_factor", "truncate"}


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """`interleaved`: rotary pairs are neighbours, as `layers.rotate` wants them. `extra_layers` come after the last
    layer: multi-token prediction, which plain scoring does without."""

    model: DeepseekConfig
    interleaved: bool
    extra_layers: int

    @classmethod
    def of(cls, values: Mapping[str, Any], path: Path) -> Self:
        """Raises ArtifactError that names the field."""
        fields = Fields(values, path)
        family = fields.text("model_type")
        if family not in (_V2, _V3):
            raise fields.refused("model_type", f"{_V2} or {_V3}")
        for name, value in _ONLY.items():
            fields.only(name, value)
        model = _architecture(fields, family)
        try:
            model.validate()
        except ConfigurationError as error:
            raise ArtifactError(f"{path}: {error.detail}") from None
        if family == _V2:
            return cls(model, interleaved=True, extra_layers=0)
        interleaved = fields.flag("rope_interleave", default=True)
        return cls(model, interleaved, fields.integer("num_nextn_predict_layers", 0))


class Fields:
    """Typed reading of a JSON object; null is absent. Raises ArtifactError that names file and field."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._given(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refused(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._given(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refused(name, "a number")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise self.refused(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._given(name, default)
        if not isinstance(value, str):
            raise self.refused(name, "a string")
        return value

    def part(self, name: str) -> Fields:
        value = self._given(name, {})
        if not isinstance(value, dict):
            raise self.refused(name, "an object")
        return Fields(value, self.path)

    def only(self, name: str, supported: object) -> None:
        if self.values.get(name, supported) not in (None, supported):
            raise self.refused(name, json.dumps(supported))

    def refused(self, name: str, supported: str) -> ArtifactError:
        given = repr(self.values.get(name))
        return ArtifactError(f"{self.path}: {name} is {given[:80]}; supported is {supported}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _given(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ArtifactError(f"{self.path} lacks {name}")
        return default


def _architecture(fields: Fields, family: str) -> DeepseekConfig:
    heads = fields.integer("num_attention_heads")
    fields.only("num_key_value_heads", heads)
    if "q_lora_rank" not in fields.values:
        raise ArtifactError(f"{fields.path} lacks q_lora_rank (null: queries are made by one matrix)")
    theta, scaling = _rotary(fields)
    return DeepseekConfig(
        vocab_size=fields.integer("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        d_model=fields.integer("hidden_size"),
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=heads,
        q_lora_rank=fields.integer("q_lora_rank") if fields.has("q_lora_rank") else None,
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim"),
        v_head_dim=fields.integer("v_head_dim"),
        ffn="moe",
        intermediate_size=fields.integer("intermediate_size"),
        first_k_dense_replace=fields.integer("first_k_dense_replace"),
        n_routed_experts=fields.integer("n_routed_experts"),
        n_shared_experts=fields.integer("n_shared_experts", 0),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        routed_scaling_factor=fields.number("routed_scaling_factor"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        latent_norm_eps=1e-6,  # both families leave it at their norm's default whatever rms_norm_eps says
        **(_gate_v2(fields) if family == _V2 else _gate_v3(fields)),
    )


def _gate_v2(fields: Fields) -> dict[str, Any]:
    fields.only("scoring_func", "softmax")
    # DeepSeek's own code then normalises and leaves routed_scaling_factor out, transformers does neither.
    fields.only("norm_topk_prob", False)
    method = fields.text("topk_method", "greedy").replace("gready", "greedy")  # as DeepSeek's code has it
    if method not in ("greedy", "group_limited_greedy"):
        raise fields.refused("topk_method", "greedy or group_limited_greedy")
    gate: dict[str, Any] = {"scoring_func": "softmax", "norm_topk_prob": False, "topk_method": method}
    return gate if method == "greedy" else gate | _groups(fields)


def _gate_v3(fields: Fields) -> dict[str, Any]:
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    normalise = fields.flag("norm_topk_prob", default=True)
    return {"scoring_func": "sigmoid", "norm_topk_prob": normalise, "topk_method": "noaux_tc"} | _groups(fields)


def _groups(fields: Fields) -> dict[str, int]:
    return {name: fields.integer(name) for name in ("n_group", "topk_group")}


def _rotary(fields: Fields) -> tuple[float, RopeScaling | None]:
    """`rope_scaling` beside `rope_theta`, as published, or `rope_parameters` with both, as transformers 5 writes it."""
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = fields.part(name)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    for holder in (fields, rope):
        holder.only("partial_rotary_factor", 1.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise fields.refused(name, "of the type default or yarn")
    unknown = sorted(set(rope.values) - _ROPE - {"partial_rotary_factor"})
    if unknown:
        raise fields.refused(name, f"without {', '.join(unknown)}")
    limit = fields.integer("max_position_embeddings")
    original = rope.integer("original_max_position_embeddings", limit)
    original = fields.integer("original_max_position_embeddings", original)
    return theta, RopeScaling(
        factor=rope.number("factor", limit / original if original else 0.0),
        original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.number("mscale", 0.0) or None,
        mscale_all_dim=rope.number("mscale_all_dim", 0.0) or None,
        attention_factor=rope.number("attention_factor") if rope.has("attention_factor") else None,
        truncate=rope.flag("truncate", default=True),
    )
