"""The three model shapes, random weights for them, and the requests that are scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from services.inference.engine.request import InferRequest, Part
from services.inference.model.checkpoint import LoadedModel
from services.inference.model.config import ModelConfig
from services.inference.model.moe import Gate
from services.inference.model.ranker import Ranker

ITEMS = 20_000
ACTIONS = (1, 2, 3)
NOW_S = 1_800_000_000
DEADLINE_S = 0.068


@dataclass(frozen=True)
class Shape:
    config: ModelConfig
    history: int
    candidates: int


def _config(**values: object) -> ModelConfig:
    """DeepSeek-V2's gate: softmax, the best `num_experts_per_tok`, not normalised."""
    return ModelConfig(
        vocabulary=ITEMS,
        actions=ACTIONS,
        content_tokens=0,
        content_vocabulary=1,
        mtp_depth=0,
        max_history=512,
        ffn="moe",
        first_k_dense_replace=1,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        **values,  # type: ignore[arg-type]
    ).validate()


SHAPES = {
    "s": Shape(
        _config(
            d_model=256, n_layers=4, n_heads=4, kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32,
            v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=256,
            intermediate_size=704,
        ),
        512,
        256,
    ),
    "m": Shape(
        _config(
            d_model=1024, n_layers=12, n_heads=16, kv_lora_rank=256, qk_rope_head_dim=32, qk_nope_head_dim=64,
            v_head_dim=64, n_routed_experts=32, num_experts_per_tok=4, n_shared_experts=1, moe_intermediate_size=512,
            intermediate_size=2816,
        ),
        512,
        256,
    ),
    "lite": Shape(
        _config(
            d_model=2048, n_layers=27, n_heads=16, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
            v_head_dim=128, n_routed_experts=64, num_experts_per_tok=6, n_shared_experts=2, moe_intermediate_size=1408,
            intermediate_size=10944,
        ),
        512,
        100,
    ),
}  # fmt: skip


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> LoadedModel:
    """Made where it will run, in the type it will run in: in fp32 on the host Lite would take 64 GB and minutes."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            ranker = Ranker(shape.config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        ranker.heads.residual.weight.normal_(std=0.05)
        ranker.cold.normal_(std=0.1)
        for module in ranker.modules():
            if isinstance(module, Gate):
                module.float()
    ranker.eval().requires_grad_(False)
    ranker.items.freeze()
    names = tuple((f"action{code}", code) for code in ACTIONS)
    return LoadedModel(ranker, shape.config, names, ITEMS, "random")


def requests(shape: Shape, users: int, seed: int) -> list[InferRequest]:
    """One a user."""
    random = np.random.default_rng(seed)
    made = []
    for user in range(users):
        rows = shape.history
        made.append(
            InferRequest(
                history_item=random.integers(0, ITEMS, rows, dtype=np.int32),
                history_action=random.choice(np.asarray(ACTIONS, np.int8), rows),
                history_time=NOW_S - 10_000_000 + np.cumsum(random.integers(1, 10_000, rows, dtype=np.int64)),
                candidate=random.integers(0, ITEMS, shape.candidates, dtype=np.int32),
                request_time_s=NOW_S,
                deadline_us=10_000_000,
                user_key=f"u:{seed}.{user}",
            )
        )
    return made


def parts_of(asked: list[InferRequest]) -> list[Part]:
    return [Part(request, 0 if request.candidate is None else len(request.candidate)) for request in asked]
