"""DeepSeek checkpoints as Hugging Face lays them out: `config.json` beside `model.safetensors`, or beside shards that
`model.safetensors.index.json` names.

    config.json -> CheckpointConfig        see huggingface_config
    tensors     -> DeepseekForCausalLM     each is read once and copied to its place; none may lack, none be left over

Experts come one by one (`experts.3.gate_proj.weight`, as published) or stacked (`experts.gate_up_proj`, as transformers
5 holds them). Reference: transformers 5, models/deepseek_v2 and models/deepseek_v3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.inference.model.deepseek import DeepseekForCausalLM
from services.inference.model.huggingface_config import CheckpointConfig
from services.inference.model.moe import Gate
from services.inference.model.ranker import Block
from shared.errors import ArtifactError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_NAMED = 5
"""So many tensors a message names; a checkpoint of another architecture lacks thousands."""


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> DeepseekForCausalLM:
    """In eval mode and frozen; routers stay float32 whatever `dtype`. Raises ArtifactError that names the field or the
    tensor that is missing, unexpected, of the wrong shape or not supported."""
    described = CheckpointConfig.of(_read_json(folder / CONFIG), folder / CONFIG)
    files = _tensor_files(folder)
    model = _allocate(described, torch.device(device), dtype)
    places = _places(model, files)
    extra = {name for name in files if name not in places and not _is_known_extra(name, described)}
    for names, complaint in ((set(places) - set(files), "lacks"), (extra, "has the unexpected")):
        if names:
            raise ArtifactError(f"{folder} {complaint} {_listed(names)}")
    _copy(files, places)
    if described.model.tie_word_embeddings and _HEAD in files:
        _check_tied(files[_HEAD], model)
    if not described.interleaved:
        for block in model.blocks():
            _interleave_rotary(block)
    return model.eval().requires_grad_(False)


def _allocate(described: CheckpointConfig, device: torch.device, dtype: torch.dtype) -> DeepseekForCausalLM:
    """Without the random numbers that modules begin with: for 16e9 parameters those take minutes."""
    with torch.device("meta"):
        model = DeepseekForCausalLM(described.model).to(dtype)
    for module in model.modules():
        if isinstance(module, Gate):
            module.float()
    model = model.to_empty(device=device)
    model.tie_weights()
    for buffer in model.buffers():
        buffer.zero_()
    return model


def _places(model: DeepseekForCausalLM, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors that the checkpoint must hold, and where each goes: a parameter, or a slice of stacked experts."""
    places: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        name = ours if ours == _HEAD else f"model.{ours}"
        layer, stacked, kind = name.partition(".mlp.experts.")
        if not stacked or name in names:
            places[name] = tensor
            continue
        for number, expert in enumerate(tensor):
            prefix = f"{layer}{stacked}{number}"
            if kind == "down_proj":
                places[f"{prefix}.down_proj.weight"] = expert
            else:
                places[f"{prefix}.gate_proj.weight"], places[f"{prefix}.up_proj.weight"] = expert.chunk(2)
    if model.config.tie_word_embeddings:
        del places[_HEAD]
    return places


def _is_known_extra(name: str, described: CheckpointConfig) -> bool:
    """Layers for multi-token prediction, frequencies that follow from the configuration, a tied head written out."""
    layer, first = _LAYER.match(name), described.model.n_layers
    if layer is not None and first <= int(layer[1]) < first + described.extra_layers:
        return True
    return name.endswith("rotary_emb.inv_freq") or (described.model.tie_word_embeddings and name == _HEAD)


def _copy(files: dict[str, Path], places: dict[str, Tensor]) -> None:
    for path in sorted(set(files.values())):
        try:
            with safe_open(path, "pt") as content:
                for name in content.keys():  # noqa: SIM118 (the handle is no mapping)
                    if name in places:
                        _copy_one(name, content.get_tensor(name), places[name], path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None


def _copy_one(name: str, source: Tensor, place: Tensor, path: Path) -> None:
    if source.shape != place.shape:
        raise ArtifactError(f"{path}: {name} has the shape {list(source.shape)}, not {list(place.shape)}")
    if not source.is_floating_point() or source.itemsize < 2:
        raise ArtifactError(f"{path}: {name} is {source.dtype}; quantised weights are not supported")
    place.copy_(source)


def _check_tied(path: Path, model: DeepseekForCausalLM) -> None:
    embedding = model.embed_tokens.weight
    with safe_open(path, "pt") as content:
        head = content.get_tensor(_HEAD)
    if not torch.equal(head.to(embedding), embedding):
        raise ArtifactError(f"{path}: {_HEAD} is not the embedding, although tie_word_embeddings is true")


def _interleave_rotary(block: Block) -> None:
    """Rows that make (x0, x1, … y0, y1, …) are put so that they make (x0, y0, x1, y1, …), the pairs `rotate` turns."""
    mla = block.self_attn
    query = mla.q_b_proj if mla.has_q_lora else mla.q_proj
    for matrix, groups, plain in ((query, mla.heads, mla.nope), (mla.kv_a_proj_with_mqa, 1, mla.rank)):
        rows = matrix.weight.data.view(groups, plain + mla.rope, -1)[:, plain:]
        rows.copy_(torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2))


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor that has elements: transformers writes shared experts of no width too. One file goes
    before an index, as in transformers."""
    if (folder / WEIGHTS).exists():
        paths = [folder / WEIGHTS]
    elif (folder / INDEX).exists():
        paths = _shards(folder)
    else:
        raise ArtifactError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    files: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as content:
                names = [name for name in content.keys() if 0 not in content.get_slice(name).get_shape()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        twice = files.keys() & set(names)
        if twice:
            raise ArtifactError(f"{path} repeats {_listed(twice)}")
        files.update(dict.fromkeys(names, path))
    return files


def _shards(folder: Path) -> list[Path]:
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ArtifactError(f"{folder / INDEX} has no weight_map of file names")
    for name in weight_map.values():
        if Path(name).name != name:
            raise ArtifactError(f"{folder / INDEX} names {name}, which lies outside its folder")
    return [folder / name for name in sorted(set(weight_map.values()))]


def _listed(names: Collection[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more tensors" if more > 0 else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is no JSON object")
    return content
