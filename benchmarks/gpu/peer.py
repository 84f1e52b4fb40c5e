"""The same weights in transformers' DeepseekV2Model: one masked pass a batch, or candidates over its DynamicCache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.shapes import Shape
from services.inference.engine.request import Float32, InferRequest
from services.inference.model.checkpoint import LoadedModel
from services.inference.model.embedding import CANDIDATE, gap_bucket, history_buckets


class TransformersPeer:
    """`attn_implementation` sdpa, experts by grouped_mm. Masks are built once a batch size and kept on the device."""

    def __init__(self, loaded: LoadedModel, shape: Shape, device: str) -> None:
        from transformers import DeepseekV2Config, DeepseekV2Model
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding

        self.ranker, self.shape, self.device = loaded.ranker, shape, device
        c = shape.config
        config: Any = DeepseekV2Config(
            vocab_size=8, hidden_size=c.d_model, intermediate_size=c.intermediate_size, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_heads, q_lora_rank=None,
            kv_lora_rank=c.kv_lora_rank, qk_nope_head_dim=c.qk_nope_head_dim, qk_rope_head_dim=c.qk_rope_head_dim,
            v_head_dim=c.v_head_dim, n_routed_experts=c.n_routed_experts, n_shared_experts=c.n_shared_experts,
            num_experts_per_tok=c.num_experts_per_tok, moe_intermediate_size=c.moe_intermediate_size,
            first_k_dense_replace=c.first_k_dense_replace, topk_method="greedy", n_group=1, topk_group=1,
            routed_scaling_factor=c.routed_scaling_factor, rms_norm_eps=c.rms_norm_eps, max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )  # fmt: skip
        config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
        with torch.device("meta"):
            model: Any = DeepseekV2Model(config)
            model.to(self.ranker.norm.weight.dtype)
        state = {
            name: value
            for name, value in self.ranker.state_dict().items()
            if name.startswith(("layers.", "norm.")) and not name.endswith((".e_score_correction_bias", ".load"))
        }
        state["embed_tokens.weight"] = torch.zeros(8, c.d_model, dtype=self.ranker.norm.weight.dtype, device=device)
        model.load_state_dict(state, assign=True)
        model.rotary_emb = DeepseekV2RotaryEmbedding(config=config).to(device)
        self.model: Any = model.eval()
        self.implementation = f"{model.config._attn_implementation}, {model.config._experts_implementation}"
        self._masks: dict[tuple[int, bool], Tensor] = {}
        self._cache: Any = None

    def fill(self, asked: list[InferRequest]) -> None:
        """Puts the histories of a batch into a DynamicCache."""
        from transformers import DynamicCache

        with torch.inference_mode():
            columns = self._columns(asked)
            cache = DynamicCache(config=self.model.config)
            length = self.shape.history
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.device).tril()
            self._last = self.model(
                inputs_embeds=self._embed(*columns[:3]),
                position_ids=torch.arange(length, device=self.device)[None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            self._cache = cache

    def cached(self, asked: list[InferRequest]) -> Float32:
        """Logits [B * N, A] of candidates over what `fill` left."""
        with torch.inference_mode():
            wanted, rows = self._candidates(asked)
            length, count = self.shape.history, self.shape.candidates
            hidden = self.model(
                inputs_embeds=rows,
                position_ids=torch.full((1, count), length, device=self.device),
                attention_mask=self._mask(len(asked), cached=True),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            self._cache.crop(-count)
            return self._scores(self._last, hidden, wanted)

    def whole(self, asked: list[InferRequest]) -> Float32:
        """Logits [B * N, A]; history and candidates in one pass."""
        with torch.inference_mode():
            wanted, rows = self._candidates(asked)
            length, count = self.shape.history, self.shape.candidates
            both = torch.cat((self._embed(*self._columns(asked)[:3]), rows), dim=1)
            position = torch.arange(length + count, device=self.device).clamp(max=length)
            hidden = self.model(
                inputs_embeds=both,
                position_ids=position[None],
                attention_mask=self._mask(len(asked), cached=False),
                use_cache=False,
            ).last_hidden_state
            return self._scores(hidden[:, length - 1], hidden[:, length:], wanted)

    def _scores(self, user: Tensor, hidden: Tensor, wanted: Tensor) -> Float32:
        table = self.ranker.items.table()
        base = (user[:, None].float() * table[wanted].float()).sum(-1).flatten()
        logits: Tensor = self.ranker.heads(base, hidden.flatten(0, 1).to(self.ranker.heads.slope.dtype))
        return logits.float().cpu().numpy()

    def _columns(self, asked: list[InferRequest]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Items, actions, gap buckets and times [B, L] on the device."""
        item = torch.from_numpy(np.stack([request.history_item for request in asked])).to(self.device).long()
        action = torch.from_numpy(np.stack([request.history_action for request in asked])).to(self.device).long()
        time = torch.from_numpy(np.stack([request.history_time for request in asked])).to(self.device)
        offset = torch.arange(len(asked) + 1, device=self.device) * self.shape.history
        return item, action, history_buckets(time.flatten(), offset).view_as(time), time

    def _candidates(self, asked: list[InferRequest]) -> tuple[Tensor, Tensor]:
        wanted = torch.from_numpy(np.stack([request.candidate for request in asked if request.candidate is not None]))
        wanted = wanted.to(self.device).long()
        last = torch.tensor([int(request.history_time[-1]) for request in asked], device=self.device)
        now = torch.tensor([request.request_time_s for request in asked], device=self.device)
        bucket = gap_bucket(now - last)[:, None].expand_as(wanted)
        return wanted, self._embed(wanted, torch.full_like(wanted, CANDIDATE), bucket)

    def _embed(self, item: Tensor, action: Tensor, bucket: Tensor) -> Tensor:
        events = self.ranker.events
        embedded: Tensor = self.ranker.items.table()[item] + events.action(action) + events.gap(bucket)
        return embedded

    def _mask(self, batch: int, *, cached: bool) -> Tensor:
        """True where a row may look: history causally, candidates at the history and at themselves."""
        key = (batch, cached)
        if key not in self._masks:
            length, count = self.shape.history, self.shape.candidates
            mask = torch.zeros(length + count, length + count, dtype=torch.bool, device=self.device)
            mask[:length, :length] = mask.new_ones(length, length).tril()
            mask[length:, :length] = True
            mask[length:, length:] = torch.eye(count, dtype=torch.bool, device=self.device)
            self._masks[key] = (mask[length:] if cached else mask)[None, None].expand(batch, 1, -1, -1)
        return self._masks[key]
