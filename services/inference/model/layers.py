"""RMSNorm, rotary positions and the SwiGLU feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.model.config import RopeScaling
from services.inference.model.rope import frequencies, table_factor


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Linear(nn.Linear):
    """A matrix without bias, as everywhere in DeepSeek."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), names as in Hugging Face's DeepseekV3MLP (Shazeer 2020)."""

    def __init__(self, size: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(size, intermediate)
        self.up_proj = Linear(size, intermediate)
        self.down_proj = Linear(intermediate, size)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        projected: Tensor = self.down_proj(hidden)
        return projected


def rotary_table(position: Tensor, dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, [N, dim/2] each, of positions [N]; `rope` has the frequencies."""
    angle = position.to(torch.float32)[:, None] * frequencies(dim, theta, scaling, position.device)
    factor = table_factor(scaling)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x0, x1), (x2, x3)… of [N, …, dim] by the angles of [N, dim/2].

    The result holds all first halves, then all second halves, as DeepSeek's own code does: queries and keys are
    permuted alike, so their products are those of the interleaved form.
    """
    shape = (cos.shape[0],) + (1,) * (x.dim() - 2) + (cos.shape[1],)
    cos, sin = cos.view(shape), sin.view(shape)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
