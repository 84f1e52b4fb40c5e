"""DeepSeekMoE: shared experts that every row passes, routed experts that few do (DeepSeek-V3, section 2.1.2).

The gate is a sigmoid; a bias a expert, moved by the load and not by a loss, decides who is selected and never how much
an expert counts, so that balancing does not bend the gradient. DeepSeek-V2's gate, a softmax without a bias, is the
other way that `Routing` knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.model.config import DecoderConfig, ScoringFunc, TopkMethod
from services.inference.model.layers import SwiGLU


@dataclass(frozen=True, slots=True)
class Routing:
    """How scores become a choice. `grouped`: only experts of the best `groups_kept` of `groups` may be chosen."""

    top_k: int
    scoring: ScoringFunc
    method: TopkMethod
    groups: int
    groups_kept: int
    normalise: bool
    factor: float

    @classmethod
    def of(cls, config: DecoderConfig) -> Routing:
        return cls(
            config.num_experts_per_tok,
            config.scoring_func,
            config.topk_method,
            config.n_group,
            config.topk_group,
            config.norm_topk_prob,
            config.routed_scaling_factor,
        )

    @property
    def grouped(self) -> bool:
        return self.method != "greedy" and self.groups_kept < self.groups


def route(logits: Tensor, bias: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """logits [N, E] float32, bias [E] to expert numbers [N, k] int64, in no order, and weights [N, k] float32.

    Arithmetic of Hugging Face's DeepseekV2TopkRouter and DeepseekV3TopkRouter. Never waits for the device.
    """
    score = logits.sigmoid() if routing.scoring == "sigmoid" else logits.softmax(dim=-1)
    preference = score + bias
    if routing.grouped:
        preference = preference.masked_fill(_outside_groups(preference, routing), float("-inf"))
    chosen = preference.topk(routing.top_k, dim=-1, sorted=False).indices
    weight = score.gather(1, chosen)
    if routing.normalise:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    return chosen, weight * routing.factor


def _outside_groups(preference: Tensor, routing: Routing) -> Tensor:
    """[N, E], True for experts of the groups that lose: by their best expert (V2) or their best two (V3)."""
    rows, experts = preference.shape
    best = 2 if routing.method == "noaux_tc" else 1
    members = preference.view(rows, routing.groups, experts // routing.groups)
    kept = members.topk(best, dim=-1).values.sum(-1).topk(routing.groups_kept, dim=-1, sorted=False).indices
    outside = torch.ones(rows, routing.groups, dtype=torch.bool, device=preference.device).scatter_(1, kept, False)
    return outside.repeat_interleave(experts // routing.groups, dim=1)


class Gate(nn.Module):
    """Chooses `num_experts_per_tok` of E experts a row. fp32: a rounding here changes which expert runs.

    The bias stays zero, and out of checkpoints, where the method has none.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        routing = self.routing = Routing.of(config)
        self.top_k, self.normalise, self.factor = routing.top_k, routing.normalise, routing.factor
        self.sigmoid, self.plain = routing.scoring == "sigmoid", not routing.grouped
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.d_model))
        bias = torch.zeros(config.n_routed_experts)
        self.register_buffer("e_score_correction_bias", bias, persistent=self.is_biased)
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    @property
    def is_biased(self) -> bool:
        return self.routing.method == "noaux_tc"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, d] to expert numbers [N, k] int64 and weights [N, k] float32."""
        logits = functional.linear(x.float(), self.weight.float())
        chosen, weight = route(logits, self.e_score_correction_bias, self.routing)
        if self.training:
            self.load += torch.bincount(chosen.flatten(), minlength=self.load.shape[0])
        return chosen, weight

    @torch.no_grad()
    def rebalance(self, speed: float) -> None:
        """After an optimiser step: an overloaded expert's bias falls by `speed`, an underloaded one's rises."""
        if self.is_biased:
            self.e_score_correction_bias += speed * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Experts(nn.Module):
    """E SwiGLU experts in two stacked matrices: `gate_up_proj` [E, 2I, d] and `down_proj` [E, d, I]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        count, inner = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, config.d_model))
        self.down_proj = nn.Parameter(torch.empty(count, config.d_model, inner))

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Rows sorted by expert, one pair of products an expert that has rows."""
        top_k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.down_proj.shape[0]).tolist()
        source = order // top_k
        groups = torch.split(x.index_select(0, source), counts)
        done = [self._one(e, rows) for e, rows in enumerate(groups) if rows.shape[0]]
        routed = torch.cat(done) * weight.flatten().index_select(0, order)[:, None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, source, routed)

    def _one(self, expert: int, rows: Tensor) -> Tensor:
        gate, up = functional.linear(rows, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down_proj[expert])


class DeepseekMoE(nn.Module):
    """shared(x) + sum over the chosen experts of weight * expert(x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.d_model, shared) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x
        routed: Tensor = self.experts(x, *self.gate(x))
        return routed if self.shared_experts is None else routed + self.shared_experts(x)
