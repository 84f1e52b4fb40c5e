"""A ranker's architecture may use what DeepSeek's checkpoints do: YaRN, grouped experts, a softmax gate."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch
from services.inference.model.config import ModelConfig, RopeScaling
from services.inference.model.moe import Gate
from services.inference.model.ranker import Ranker
from shared.errors import ConfigurationError
from tests.inference_models import TINY, TINY_MOE

YARN = RopeScaling(factor=4.0, original_max_position_embeddings=8, mscale_all_dim=1.0)
GROUPED: dict[str, Any] = {"n_routed_experts": 8, "n_group": 4, "topk_group": 1, "num_experts_per_tok": 2}


def test_rotary_scaling_survives_the_manifest() -> None:
    config = replace(TINY, rope_scaling=YARN)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_manifest_from_before_these_fields_reads_as_it_did() -> None:
    later = {"scoring_func", "topk_method", "n_group", "topk_group", "rope_scaling", "latent_norm_eps"}
    earlier = {name: value for name, value in TINY_MOE.to_dict().items() if name not in later}
    assert ModelConfig.from_dict(earlier) == TINY_MOE


def test_rotary_scaling_reaches_a_rankers_states() -> None:
    rows = ([1, 2, 3] * 4, [1] * 12, list(range(12)))
    batch = PackedBatch.from_requests([rows], [[]], [0])
    states = []
    for config in (TINY, replace(TINY, rope_scaling=YARN)):
        torch.manual_seed(0)
        ranker = Ranker(config).eval()
        with torch.inference_mode():
            states.append(ranker.states(batch, Layout.of(batch), ranker.items.table()))
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_a_softmax_gate_has_no_bias_to_move() -> None:
    gate = Gate(replace(TINY_MOE, scoring_func="softmax", topk_method="greedy")).train()
    torch.nn.init.normal_(gate.weight)
    gate(torch.rand(64, TINY_MOE.d_model))
    assert gate.load.sum() == 64 * TINY_MOE.num_experts_per_tok
    gate.rebalance(0.1)
    assert not gate.e_score_correction_bias.any()
    assert set(gate.state_dict()) == {"weight"}


def test_chosen_experts_come_from_the_kept_groups_alone() -> None:
    gate = Gate(replace(TINY_MOE, **GROUPED).validate())
    torch.nn.init.normal_(gate.weight)
    chosen, _ = gate(torch.randn(200, TINY_MOE.d_model))
    group = chosen // 2
    assert (group[:, 0] == group[:, 1]).all()
    assert group.unique().numel() == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scoring_func": "tanh"}, "scoring_func"),
        ({"topk_method": "best"}, "topk_method"),
        ({**GROUPED, "n_group": 3}, "n_group"),
        ({**GROUPED, "n_group": 0}, "n_group"),
        ({**GROUPED, "n_group": 8}, "n_group"),
        ({**GROUPED, "topk_group": 5}, "topk_group"),
        ({**GROUPED, "num_experts_per_tok": 3}, "num_experts_per_tok"),
        ({"rope_scaling": replace(YARN, factor=0.0)}, "rope_scaling.factor"),
        ({"rope_scaling": replace(YARN, original_max_position_embeddings=0)}, "original_max_position_embeddings"),
        ({"rope_scaling": replace(YARN, beta_slow=64.0)}, "beta_slow"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused_by_the_fields_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        replace(TINY_MOE, **change).validate()


@pytest.mark.parametrize("value", [{"factor": 4.0}, {"factor": 4.0, "type": "yarn"}, "yarn"])
def test_a_manifest_with_rotary_scaling_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="incomplete"):
        ModelConfig.from_dict({**TINY.to_dict(), "rope_scaling": value})
