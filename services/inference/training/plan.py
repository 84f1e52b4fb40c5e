"""How to train: everything that is not architecture, and the presets that were chosen by validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from shared.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class NextItemPlan:
    """The first phase: full (or sampled) softmax over the next item, and over the one after it (MTP)."""

    epochs: int = 15
    batch_rows: int = 4096
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.03
    label_smoothing: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.99
    mtp_weight: float = 0.3
    mtp_share: float = 0.25
    id_dropout: float = 0.02
    bias_speed: float = 1e-3
    full_softmax_items: int = 50_000
    sampled_negatives: int = 8192


@dataclass(frozen=True, slots=True)
class RankingPlan:
    """The second phase: candidates in their own seats. `negatives` a position, `hard_share` of them from the model."""

    epochs: int = 1
    batch_rows: int = 2048
    positions: int = 12
    negatives: int = 15
    hard_share: float = 0.3
    learning_rate: float = 2e-4
    listwise_weight: float = 1.0
    next_item_weight: float = 1.0
    time_share: float = 0.15


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """`max_seconds` bounds both phases; the schedules finish inside it whatever the machine. `architecture` overrides
    fields of ModelConfig."""

    next_item: NextItemPlan = NextItemPlan()
    ranking: RankingPlan = RankingPlan()
    architecture: dict[str, Any] = field(default_factory=dict)
    max_seconds: float = 285.0
    seed: int = 0
    min_positives: int = 200
    """An action with fewer events gets no head: its probability would be a guess."""


_PRESETS: dict[str, TrainingPlan] = {
    # On MovieLens-100K, last but one event, full ranking, NDCG@10 over one to three seeds: dropout 0 gave .121, 0.1
    # .125, 0.2 .124 to .130, 0.3 .123 to .131; 10 epochs .118 to .126, 30 .126 to .129; without content tokens .109;
    # without MTP .118 (benchmarks/LOG.md).
    "small": TrainingPlan(architecture={"dropout": 0.2}),
    "moe": TrainingPlan(
        architecture={
            "dropout": 0.2,
            "ffn": "moe",
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 64,
        }
    ),
}


def preset(name: str, *, epochs: int | None = None, max_seconds: float | None = None) -> TrainingPlan:
    """Raises ConfigurationError on an unknown name."""
    if name not in _PRESETS:
        raise ConfigurationError(f"there is no training preset {name!r}; known: {', '.join(_PRESETS)}")
    plan = _PRESETS[name]
    if epochs is not None:
        plan = replace(plan, next_item=replace(plan.next_item, epochs=epochs))
    if max_seconds is not None:
        plan = replace(plan, max_seconds=max_seconds)
    return plan
