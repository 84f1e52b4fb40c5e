"""YaRN: rotary frequencies and scales of a model that was stretched to longer inputs (Peng et al. 2023, section 3).

Dimensions that turn often inside the original length keep their frequency, those that turn less than once are slowed by
`factor`, a ramp lies between. The arithmetic is that of Hugging Face's `_compute_yarn_parameters`, which every DeepSeek
checkpoint is read with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from services.inference.model.config import DecoderConfig, RopeScaling


def frequencies(dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """[dim/2] float32, radians a position; without scaling theta^(-2i/dim) (Su et al. 2021)."""
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    plain = torch.pow(theta, -exponent)
    if scaling is None:
        return plain
    low, high = _ramp(dim, theta, scaling)
    slowed = ((torch.arange(dim // 2, device=device, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return plain * (1.0 - slowed) + plain / scaling.factor * slowed


def table_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by, so that the rotary part of a score grows by its square."""
    if scaling is None:
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _growth(scaling.factor, scaling.mscale) / _growth(scaling.factor, scaling.mscale_all_dim)
    return _growth(scaling.factor, 1.0)


def attention_scale(config: DecoderConfig) -> float:
    """What a score is multiplied by before the softmax: 1/sqrt(dk), corrected by the square of DeepSeek's mscale."""
    scale = float(config.qk_head_dim**-0.5)
    scaling = config.rope_scaling
    if scaling is None or not scaling.mscale_all_dim:
        return scale
    return scale * _growth(scaling.factor, scaling.mscale_all_dim) ** 2


def _growth(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _ramp(dim: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """The pairs between which frequencies go from kept to slowed: those that turn beta_fast and beta_slow times."""
    low, high = (_turns(count, dim, theta, scaling) for count in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def _turns(count: float, dim: int, theta: float, scaling: RopeScaling) -> float:
    """The pair, as a fraction, that turns `count` times within the original length."""
    length = scaling.original_max_position_embeddings
    return dim * math.log(length / (count * 2 * math.pi)) / (2 * math.log(theta))
