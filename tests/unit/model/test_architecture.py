"""What the architecture promises: causality, isolation, one answer for packed and single requests, honest folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.model import checkpoint
from services.inference.model.attention import Layout
from services.inference.model.batch import PackedBatch
from services.inference.model.config import ModelConfig
from services.inference.model.mla import MultiHeadLatentAttention
from services.inference.model.moe import DeepseekMoE, Gate
from services.inference.model.mtp import MultiTokenPrediction
from services.inference.model.ranker import Ranker
from shared.contracts.manifest import ModelManifest
from shared.errors import ArtifactError, ConfigurationError
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import TINY, TINY_MOE, publish

Rows = tuple[list[int], list[int], list[int]]


def made(config: ModelConfig = TINY, seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    ranker = Ranker(config).eval()
    with torch.no_grad():
        ranker.heads.residual.weight.normal_(std=0.3)
        ranker.cold.normal_(std=0.3)
    return ranker


def history(length: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 100_000, length)).tolist()
    return rng.integers(0, TINY.vocabulary, length).tolist(), rng.integers(1, 3, length).tolist(), times


def states(ranker: Ranker, rows: Rows) -> torch.Tensor:
    batch = PackedBatch.from_requests([rows], [[]], [0])
    with torch.inference_mode():
        return ranker.states(batch, Layout.of(batch), ranker.items.table())


@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY, q_lora_rank=8)])
def test_a_rows_state_depends_on_earlier_rows_only(config: ModelConfig) -> None:
    ranker, rows = made(config), history(12)
    whole = states(ranker, rows)
    for length in (1, 5, 11):
        part = states(ranker, (rows[0][:length], rows[1][:length], rows[2][:length]))
        torch.testing.assert_close(part, whole[:length], atol=1e-5, rtol=1e-4)


def test_a_rows_state_does_not_depend_on_when_it_is_looked_at() -> None:
    ranker, (items, actions, times) = made(), history(8)
    later = [time + 86_400 * 365 for time in times]
    torch.testing.assert_close(states(ranker, (items, actions, times)), states(ranker, (items, actions, later)))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_packed_requests_get_what_each_would_get_alone(lengths: list[int], seed: int) -> None:
    ranker = made()
    requests = [history(length, seed + place) for place, length in enumerate(lengths)]
    rng = np.random.default_rng(seed)
    candidates = [rng.integers(0, 60, int(rng.integers(0, 9))).tolist() for _ in lengths]
    now = [int(rng.integers(10**7, 10**8)) for _ in lengths]
    with torch.inference_mode():
        together = ranker(PackedBatch.from_requests(requests, candidates, now))
        begin = 0
        for place, rows in enumerate(requests):
            alone = ranker(PackedBatch.from_requests([rows], [candidates[place]], [now[place]]))
            end = begin + len(candidates[place])
            torch.testing.assert_close(together.logits[begin:end], alone.logits, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(together.user_vector[place], alone.user_vector[0], atol=1e-4, rtol=1e-3)
            begin = end


def test_before_the_ranking_phase_slates_are_ordered_as_retrieval_orders() -> None:
    ranker = made()
    with torch.no_grad():
        ranker.heads.residual.weight.zero_()
        everything = list(range(TINY.vocabulary))
        output = ranker(PackedBatch.from_requests([history(9)], [everything], [10**8]))
        expected = output.user_vector[0] @ ranker.item_vectors().T
    torch.testing.assert_close(output.logits[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_time_of_the_request_reaches_the_candidates() -> None:
    ranker, rows = made(), history(6)
    with torch.inference_mode():
        soon, late = (
            ranker(PackedBatch.from_requests([rows], [[1, 2]], [rows[2][-1] + gap])).logits for gap in (1, 10**7)
        )
    assert not torch.allclose(soon, late)


def test_a_frozen_item_table_gives_the_same_scores() -> None:
    ranker = made()
    ranker.items.content[:, 0] = torch.arange(TINY.vocabulary + 1) % 7
    batch = PackedBatch.from_requests([history(6)], [[1, 2, 3]], [10**8])
    with torch.inference_mode():
        before = ranker(batch).logits
        ranker.items.freeze()
        torch.testing.assert_close(ranker(batch).logits, before)


def test_latents_are_what_a_row_leaves_behind_and_keys_and_values_are_expanded_from_them() -> None:
    config = ModelConfig(vocabulary=10, actions=(1,))
    kept = config.kv_lora_rank + config.qk_rope_head_dim
    attended = config.n_heads * (config.qk_head_dim + config.v_head_dim)
    assert kept * 2 < attended
    attention = MultiHeadLatentAttention(TINY)
    rotary = (torch.ones(3, TINY.qk_rope_head_dim // 2), torch.zeros(3, TINY.qk_rope_head_dim // 2))
    latent, shared = attention.latents(torch.randn(3, TINY.d_model), rotary)
    assert latent.shape == (3, TINY.kv_lora_rank)
    assert shared.shape == (3, TINY.qk_rope_head_dim)
    key, value = attention.expand(latent, shared)
    assert key.shape == (3, TINY.n_heads, TINY.qk_head_dim)
    assert value.shape == (3, TINY.n_heads, TINY.v_head_dim)


def test_a_mixture_is_its_shared_expert_plus_the_weighted_experts_it_chose() -> None:
    torch.manual_seed(1)
    mixture = DeepseekMoE(TINY_MOE).eval()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(7, TINY.d_model)
    chosen, weight = mixture.gate(x)
    assert mixture.shared_experts is not None
    expected = mixture.shared_experts(x)
    for row in range(7):
        for slot in range(TINY_MOE.num_experts_per_tok):
            expert = int(chosen[row, slot])
            expected[row] += weight[row, slot] * mixture.experts._one(expert, x[row : row + 1])[0]
    torch.testing.assert_close(mixture(x), expected)
    torch.testing.assert_close(weight.sum(1), torch.full((7,), TINY_MOE.routed_scaling_factor))


def test_the_bias_moves_load_to_idle_experts_and_never_the_weight_of_one() -> None:
    torch.manual_seed(2)
    gate = Gate(TINY_MOE).train()
    with torch.no_grad():
        gate.weight.normal_(std=0.05)
        gate.weight[0] += 1.0  # one expert that every row would choose
    x = torch.rand(256, TINY.d_model)

    def spread() -> float:
        gate.load.zero_()
        gate(x)
        return float(gate.load.max() / gate.load.mean())

    before = spread()
    for _ in range(1000):
        gate(x)
        gate.rebalance(0.002)
    assert spread() < 0.75 * before
    score = torch.sigmoid(x @ gate.weight.T)
    chosen, weight = gate(x)
    picked = score.gather(1, chosen)
    torch.testing.assert_close(weight, picked / picked.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_multi_token_prediction_sees_no_further_than_the_next_item() -> None:
    ranker, mtp, rows = made(), MultiTokenPrediction(TINY).eval(), history(10)
    batch = PackedBatch.from_requests([rows], [[]], [0])
    layout, table = Layout.of(batch), ranker.items.table()
    following = torch.tensor([*rows[0][1:], 3])
    with torch.inference_mode():
        hidden = ranker.states(batch, layout, table)
        whole = mtp(hidden, table[following], layout)
        following[6:] = 4
        changed = mtp(hidden, table[following], layout)
    torch.testing.assert_close(whole[:6], changed[:6])
    assert not torch.allclose(whole[6:], changed[6:])


def test_a_folder_gives_back_the_model_that_was_saved(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    publish(store, "m-1", TINY_MOE, seed=3)
    folder = tmp_path / "models" / "m-1"
    loaded = checkpoint.load(folder)
    vectors = np.load(folder / checkpoint.ITEM_VECTORS)
    np.testing.assert_allclose(vectors, loaded.ranker.item_vectors().numpy(), rtol=1e-6)
    assert loaded.version == "m-1"
    assert [code for _, code in loaded.actions] == list(TINY_MOE.actions)


@pytest.mark.parametrize("change", [{"d_model": 32}, {"unheard_of": 1}, {"actions": [1]}, {"qk_rope_head_dim": 3}])
def test_a_folder_whose_manifest_does_not_fit_its_weights_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    publish(ArtifactStore(tmp_path), "m-1")
    path = tmp_path / "models" / "m-1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["architecture"] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        checkpoint.load(path.parent)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _garbage(content: bytes) -> bytes:
    return b"no tensors" * 10


def _one_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [_cut, _garbage])
def test_weights_that_are_no_whole_file_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    publish(ArtifactStore(tmp_path), "m-1")
    weights = tmp_path / "models" / "m-1" / checkpoint.WEIGHTS
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ArtifactError, match="does not fit"):
        checkpoint.load(weights.parent)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.ITEM_VECTORS])
def test_a_single_wrong_bit_is_found_by_the_folders_checksums(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path)
    publish(store, "m-1")
    damaged = tmp_path / "models" / "m-1" / name
    damaged.write_bytes(_one_bit(damaged.read_bytes()))
    with pytest.raises(ArtifactError, match="damaged"):
        store.open_folder(ModelManifest, "m-1")


def test_an_architecture_that_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="num_experts_per_tok"):
        replace(TINY_MOE, num_experts_per_tok=9).validate()
    with pytest.raises(ConfigurationError, match="actions"):
        replace(TINY, actions=(1, 1)).validate()
