"""A model's folder: `model.safetensors` (weights and content tokens) beside `manifest.json` (architecture, actions).

Publishing and checksums belong to `shared/storage/artifacts.py`; here a verified folder becomes modules and back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from services.inference.model.config import ModelConfig
from services.inference.model.ranker import Ranker
from shared.errors import ArtifactError, ConfigurationError

WEIGHTS = "model.safetensors"
ITEM_VECTORS = "item_vectors.npy"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`ranker` is in eval mode, its item table frozen; `actions` are (name, code) in the order of the logit columns."""

    ranker: Ranker
    config: ModelConfig
    actions: tuple[tuple[str, int], ...]
    vocabulary: int
    version: str


def save(folder: Path, ranker: Ranker) -> None:
    """Writes the weights and `item_vectors.npy` [V, D] float32, which the torch-free index builder reads."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in ranker.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with torch.no_grad():
        np.save(folder / ITEM_VECTORS, ranker.item_vectors().cpu().numpy().astype(np.float32))


def load(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Raises ArtifactError when the folder is incomplete, or holds weights of another architecture."""
    manifest = _read_manifest(folder)
    try:
        config = ModelConfig.from_dict(manifest["architecture"])
        actions = tuple((str(action["name"]), int(action["code"])) for action in manifest["actions"])
        version = str(manifest["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / _MANIFEST} lacks what a model needs: {error}") from None
    except ConfigurationError as error:
        raise ArtifactError(f"{folder / _MANIFEST}: {error.detail}") from None
    if tuple(code for _, code in actions) != config.actions:
        raise ArtifactError(f"{folder / _MANIFEST}: actions and architecture.actions name different heads")
    ranker = Ranker(config)
    try:
        ranker.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{folder / WEIGHTS} does not fit its manifest: {error}") from None
    ranker.to(device).eval().requires_grad_(False)
    ranker.items.freeze()
    return LoadedModel(ranker, config, actions, config.vocabulary, version)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / _MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / _MANIFEST} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{folder / _MANIFEST} is no JSON object")
    return content
