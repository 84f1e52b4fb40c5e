"""DeepSeek-V2 and V3 checkpoints that transformers wrote give transformers' logits, and doubtful ones are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.inference.model import huggingface
from services.inference.model.config import RopeScaling
from services.inference.model.deepseek import DeepseekForCausalLM
from services.inference.model.huggingface_config import CheckpointConfig
from services.inference.model.moe import Gate
from services.inference.model.rope import frequencies, table_factor
from shared.errors import ArtifactError

os.environ["HF_HUB_OFFLINE"] = "1"
# Missing, it skips on a developer's machine and fails under CI, as a missing store does (tests/conftest.py).
transformers: Any = import_module("transformers") if os.environ.get("CI") else pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

# Of shared experts without width, which transformers makes where a model has none.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")

TOLERANCE = 1e-4
FAMILIES = ("V2", "V3")
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "original_max_position_embeddings": 8}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shapes(family: str, number: int) -> dict[str, Any]:
    """A random small configuration; what the families differ in goes through its combinations as `number` counts."""
    rng = random.Random(f"{family} {number}")
    heads, group = rng.choice([1, 2, 4]), rng.choice([2, 3, 4])
    groups = (1, 2, 4)[number // 2 % 3]
    kept = rng.randint(1, groups)
    values: dict[str, Any] = {
        "vocab_size": rng.randint(20, 60),
        "hidden_size": heads * rng.choice([8, 12]),
        "intermediate_size": rng.randint(8, 40),
        "moe_intermediate_size": rng.randint(4, 16),
        "num_hidden_layers": rng.randint(2, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": (None, rng.randint(4, 12))[number % 2],
        "kv_lora_rank": rng.choice([4, 8, 14]),  # even, like the next: transformers' V2 views pairs as complex numbers
        "qk_nope_head_dim": rng.choice([2, 4, 6]),
        "qk_rope_head_dim": rng.choice([2, 4, 8]),
        "v_head_dim": rng.randint(3, 8),
        "n_routed_experts": groups * group,
        "n_shared_experts": number % 3,
        "num_experts_per_tok": rng.randint(1, min(4, kept * group)),
        "first_k_dense_replace": number // 3 % 3,
        "n_group": groups,
        "topk_group": kept,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "rms_norm_eps": rng.choice([1e-6, 1e-2]),
        "max_position_embeddings": 64,
        "tie_word_embeddings": number % 5 == 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([100.0, 10_000.0])},
    }
    if number // 2 % 2:
        factor = rng.choice([4.0, 40.0])
        values["rope_parameters"] = {**YARN, "rope_theta": 1000.0, "factor": factor}
        values["max_position_embeddings"] = int(factor * 8)
    if family == "V2":
        return values | {"topk_method": "greedy" if groups == 1 else "group_limited_greedy"}
    return values | {"norm_topk_prob": rng.random() < 0.5, "rope_interleave": number % 4 != 3}


def reference(family: str, values: dict[str, Any], seed: int = 0) -> Any:
    """transformers' own model with weights that make logits of about one and routers that disagree."""
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}  # grouped_mm wants widths of 16 bytes
    config = getattr(transformers, f"Deepseek{family}Config")(**values, **plain)
    torch.manual_seed(seed)
    model = getattr(transformers, f"Deepseek{family}ForCausalLM")(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("e_score_correction_bias"):
            tensor.normal_(std=0.3)
        elif tensor.numel():
            tensor.normal_(std=1.0 if "embed" in name else tensor.shape[-1] ** -0.5)
    return model


def sequences(vocabulary: int, seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    longest = int(rng.integers(20, 40))
    lengths = [1, longest, int(rng.integers(2, 20))] if seed % 2 else [longest, longest - 1, longest]
    return [torch.from_numpy(rng.integers(0, vocabulary, length)) for length in lengths]


def assert_same_logits(ours: DeepseekForCausalLM, model: Any, seed: int = 0) -> None:
    """Packed in one pass here, one by one there."""
    wanted = sequences(ours.config.vocab_size, seed)
    offset = torch.tensor([0, *np.cumsum([len(tokens) for tokens in wanted]).tolist()])
    with torch.inference_mode():
        logits = ours(torch.cat(wanted), offset)
        expected = torch.cat([model(tokens[None]).logits[0] for tokens in wanted])
    assert expected.std() > 0.3, "logits too small to tell models apart"
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0.0)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_gives_the_logits_of_transformers(family: str, number: int, tmp_path: Path) -> None:
    model = reference(family, shapes(family, number), number)
    model.save_pretrained(tmp_path)
    assert_same_logits(huggingface.load(tmp_path), model, number)


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_choose_and_weigh_as_the_routers_of_transformers(family: str, tmp_path: Path) -> None:
    values = shapes(family, 4) | {"n_routed_experts": 16, "topk_group": 2, "num_experts_per_tok": 3}
    model = reference(family, values | {"first_k_dense_replace": 0})
    model.save_pretrained(tmp_path)
    gate = next(module for module in huggingface.load(tmp_path).modules() if isinstance(module, Gate))
    assert gate.routing.grouped
    rows = torch.randn(1000, values["hidden_size"], generator=torch.Generator().manual_seed(1))
    chosen, weight = gate(rows)
    _, expected_weight, expected = model.model.layers[0].mlp.gate(rows)
    dense = torch.zeros(1000, 16).scatter(1, chosen, weight)
    torch.testing.assert_close(dense, torch.zeros(1000, 16).scatter(1, expected, expected_weight))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"truncate": False},
        {"attention_factor": 1.3},
        {"factor": None},
        {"mscale": None, "mscale_all_dim": None},
        {"mscale_all_dim": None},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"factor": 0.5},
        {"original_max_position_embeddings": 4096},
        {"original_max_position_embeddings": 6},  # both ends of the ramp at pair 0
        {"original_max_position_embeddings": 1},  # its upper end below pair 0
    ],
    ids=str,
)
def test_yarn_has_the_frequencies_and_factors_of_transformers(change: dict[str, Any]) -> None:
    given = {**YARN, "rope_theta": 1000.0, **change}
    config = transformers.DeepseekV3Config(
        rope_parameters=dict(given), qk_rope_head_dim=32, qk_nope_head_dim=32, max_position_embeddings=64
    )
    if given["factor"] is None:
        given["factor"] = 64 / given["original_max_position_embeddings"]
    expected, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config)
    scaling = RopeScaling(**{name: value for name, value in given.items() if not name.startswith("rope_")})
    torch.testing.assert_close(frequencies(32, 1000.0, scaling, torch.device("cpu")), expected)
    assert table_factor(scaling) == pytest.approx(factor)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with YaRN, groups, shared experts and one dense layer; copy it before changing it."""
    family = request.param
    values = shapes(family, 3) | {"first_k_dense_replace": 1, "n_shared_experts": 1, "tie_word_embeddings": False}
    values |= {"n_group": 2, "topk_group": 1, "n_routed_experts": 8, "num_experts_per_tok": 2}
    if family == "V2":
        values["topk_method"] = "group_limited_greedy"
    model = reference(family, values)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def folder(saved: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "checkpoint"))


@pytest.fixture
def model(saved: tuple[Path, Any]) -> Any:
    return saved[1]


def edit(folder: Path, change: Change, file: str = huggingface.CONFIG) -> None:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def edit_tensors(folder: Path, change: Change) -> None:
    tensors: dict[str, Any] = load_file(folder / huggingface.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / huggingface.WEIGHTS)


def test_rotary_settings_are_read_in_their_published_spelling(folder: Path) -> None:
    def respell(values: dict[str, Any]) -> None:
        rope = values.pop("rope_parameters")
        values["rope_theta"] = rope.pop("rope_theta")
        values["rope_scaling"] = {**rope, "type": rope.pop("rope_type"), "mscale": 0.4, "beta_fast": 16}

    edit(folder, respell)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same_logits(huggingface.load(folder), model)


def test_shards_are_joined(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(huggingface.load(tmp_path), model)


def test_stacked_experts_are_taken_as_they_are(folder: Path, model: Any) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert "model.layers.1.mlp.experts.gate_up_proj" in tensors
    save_file(tensors, folder / huggingface.WEIGHTS)
    assert_same_logits(huggingface.load(folder), model)


def test_prediction_layers_and_rotary_frequencies_are_left_out(folder: Path, model: Any) -> None:
    layers = model.config.num_hidden_layers
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    if model.config.model_type == "deepseek_v3":
        extra |= {
            f"model.layers.{layers}.eh_proj.weight": torch.ones(2, 4),
            f"model.layers.{layers}.hnorm.weight": torch.ones(2),
        }
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    assert_same_logits(huggingface.load(folder), model)


def test_a_tied_head_may_be_written_out_but_not_differ(folder: Path) -> None:
    edit(folder, lambda values: values.update(tie_word_embeddings=True))
    with pytest.raises(ArtifactError, match=r"lm_head\.weight is not the embedding"):
        huggingface.load(folder)
    edit_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    ours = huggingface.load(folder)
    assert ours.lm_head.weight is ours.embed_tokens.weight


def test_routers_stay_in_float32_when_weights_do_not(folder: Path) -> None:
    ours = huggingface.load(folder, dtype=torch.bfloat16)
    routers = {name for name, tensor in ours.state_dict().items() if tensor.dtype is torch.float32}
    assert routers
    assert all(".mlp.gate." in name for name in routers)
    assert {tensor.dtype for name, tensor in ours.state_dict().items() if name not in routers} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("moe_layer_freq", 2),
        ("quantization_config", {"quant_method": "fp8"}),
        ("num_key_value_heads", 77),
        ("scoring_func", "tanh"),
        ("topk_method", "random"),
        ("partial_rotary_factor", 0.5),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {**YARN, "llama_4_scaling_beta": 1.0}),
        ("rope_scaling", {**YARN, "factor": "4"}),
        ("rope_scaling", 4.0),
        ("n_group", 3),
        ("topk_group", 5),
        ("num_experts_per_tok", 5),
        ("num_experts_per_tok", True),
        ("qk_rope_head_dim", 3),
        ("hidden_size", "16"),
        ("tie_word_embeddings", "no"),
        ("hidden_size", None),
        ("routed_scaling_factor", None),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_the_fields_name(
    folder: Path, field: str, value: object
) -> None:
    edit(folder, lambda values: values.update({field: value}))
    name = "factor" if isinstance(value, dict) and value.get("factor") == "4" else field
    with pytest.raises(ArtifactError, match=rf"config\.json.*\b{name}\b"):
        huggingface.load(folder)


PUBLISHED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "kv_lora_rank": 512,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
}
YARN_PUBLISHED = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
LITE = PUBLISHED | {
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "rope_scaling": YARN_PUBLISHED | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
V3 = PUBLISHED | {
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": YARN_PUBLISHED | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}


@pytest.mark.parametrize(("values", "parameters"), [(LITE, 15.7e9), (V3, 671e9)], ids=["V2-Lite", "V3"])
def test_the_published_configurations_make_models_of_the_published_size(
    values: dict[str, Any], parameters: float
) -> None:
    described = CheckpointConfig.of(values, Path(huggingface.CONFIG))
    with torch.device("meta"):
        model = DeepseekForCausalLM(described.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=2e-3)
    assert described.extra_layers == values.get("num_nextn_predict_layers", 0)


def test_the_quantised_weights_of_the_published_v3_are_refused() -> None:
    values = V3 | {"quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}}
    with pytest.raises(ArtifactError, match="quantization_config"):
        CheckpointConfig.of(values, Path(huggingface.CONFIG))


def test_a_missing_q_lora_rank_is_refused_for_null_means_something(folder: Path) -> None:
    edit(folder, lambda values: values.pop("q_lora_rank"))
    with pytest.raises(ArtifactError, match="lacks q_lora_rank"):
        huggingface.load(folder)


def test_weights_of_v2_are_not_normalised_for_the_two_references_disagree(folder: Path, model: Any) -> None:
    edit(folder, lambda values: values.update(norm_topk_prob=True))
    if model.config.model_type == "deepseek_v2":
        with pytest.raises(ArtifactError, match="norm_topk_prob is True; supported is false"):
            huggingface.load(folder)
    else:
        assert huggingface.load(folder).config.norm_topk_prob


LATENTS = "model.layers.1.self_attn.kv_b_proj.weight"
EXPERT = "model.layers.1.mlp.experts.7.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop(LATENTS), f"lacks {LATENTS}"),
        (lambda tensors: tensors.pop(EXPERT), f"lacks {EXPERT}"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda tensors: tensors.update({EXPERT: tensors[EXPERT][1:].clone()}), f"{EXPERT} has the shape"),
        (lambda tensors: tensors.update({LATENTS: tensors[LATENTS].T.contiguous()}), f"{LATENTS} has the shape"),
        (lambda tensors: tensors.update({EXPERT: tensors[EXPERT].to(torch.int8)}), f"{EXPERT} is torch.int8"),
        (lambda tensors: tensors.update({LATENTS: tensors[LATENTS].to(torch.float8_e4m3fn)}), f"{LATENTS} is torch.f"),
        (lambda tensors: tensors.update({LATENTS + "_scale_inv": torch.ones(1)}), f"unexpected {LATENTS}_scale_inv"),
        (lambda tensors: tensors.update({"model.layers.9.norm.weight": torch.ones(1)}), "unexpected model.layers.9"),
        (lambda tensors: tensors.clear() or tensors.update({"x": torch.ones(1)}), "lacks lm_head.weight, .* more"),
    ],
)
def test_tensors_that_lack_are_left_over_or_do_not_fit_are_named(folder: Path, change: Change, complaint: str) -> None:
    edit_tensors(folder, change)
    with pytest.raises(ArtifactError, match=complaint):
        huggingface.load(folder)


def test_files_that_cannot_be_read_are_refused(folder: Path) -> None:
    weights = folder / huggingface.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f"{huggingface.WEIGHTS} cannot be read"):
        huggingface.load(folder)
    weights.unlink()
    with pytest.raises(ArtifactError, match="holds neither"):
        huggingface.load(folder)
    (folder / huggingface.CONFIG).write_text("[]")
    with pytest.raises(ArtifactError, match="is no JSON object"):
        huggingface.load(folder)
    (folder / huggingface.CONFIG).write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json cannot be read"):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ({"weight_map": {"a": "../a.safetensors"}}, "outside its folder"),
        ({"weight_map": {"a": "absent.safetensors"}}, "absent.safetensors cannot be read"),
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, "two.safetensors repeats lm_head.weight"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(folder: Path, index: dict[str, Any], complaint: str) -> None:
    shutil.copy(folder / huggingface.WEIGHTS, folder / "one.safetensors")
    (folder / huggingface.WEIGHTS).rename(folder / "two.safetensors")
    (folder / huggingface.INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=complaint):
        huggingface.load(folder)
