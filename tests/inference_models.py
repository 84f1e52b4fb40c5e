"""Small models with random weights, saved as training saves them, and an engine that serves one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferRequest
from services.inference.engine.scheduler import BatchPolicy
from services.inference.model import checkpoint
from services.inference.model.config import ModelConfig
from services.inference.model.ranker import Ranker
from services.inference.training.publish import TOKENS
from shared.contracts.manifest import ManifestAction, ModelManifest
from shared.storage.artifacts import ArtifactStore

TINY = ModelConfig(
    vocabulary=50,
    actions=(1, 2),
    d_model=16,
    n_layers=2,
    n_heads=2,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=8,
    intermediate_size=32,
    content_tokens=2,
    content_vocabulary=32,
    max_history=40,
    initializer_range=0.3,
)
TINY_MOE = replace(
    TINY, ffn="moe", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=8
)


def publish(
    store: ArtifactStore,
    version: str,
    config: ModelConfig = TINY,
    *,
    seed: int = 0,
    broken: bool = False,
    content: str | None = None,
    names: Mapping[int, str] | None = None,
) -> ModelManifest:
    """A published model folder. `broken`: its weights give NaN. `content`: what its tokens' file holds. `names`: of
    actions, by code."""
    torch.manual_seed(seed)
    ranker = Ranker(config)
    with torch.no_grad():
        ranker.heads.residual.weight.normal_(std=0.3)
        if broken:
            ranker.norm.weight.fill_(float("nan"))
    manifest = ModelManifest(
        version=version,
        created_at=datetime.now(UTC),
        catalogue_version=0,
        architecture=config.to_dict(),
        actions=tuple(
            ManifestAction(name=(names or {}).get(code, f"action{code}"), code=code) for code in config.actions
        ),
        vocabulary=config.vocabulary,
        vector_dim=config.vector_dim,
        feature_schema="none",
    )
    with store.staging(ModelManifest, version) as staged:
        checkpoint.save(staged, ranker)
        if content is not None:
            (staged / TOKENS).write_text(content, "utf-8")
        return store.publish(staged, manifest)


@contextlib.contextmanager
def engine_of(
    root: Path, config: ModelConfig = TINY, *, policy: BatchPolicy | None = None, version: str = "m-1"
) -> Iterator[Engine]:
    """A running engine with one warm model."""
    store = ArtifactStore(root)
    publish(store, version, config)
    engine = Engine(EngineOptions(policy=policy or BatchPolicy(), threads=1))
    engine.start()
    try:
        engine.load(store.open_folder(ModelManifest, version)[0])
        yield engine
    finally:
        engine.stop()


def request_of(
    random: np.random.Generator,
    rows: int,
    candidates: int | None,
    *,
    vocabulary: int = TINY.vocabulary,
    deadline_us: int = 5_000_000,
) -> InferRequest:
    """`candidates` None: encode."""
    return InferRequest(
        random.integers(-1, vocabulary + 5, rows, dtype=np.int32),
        random.integers(0, 4, rows, dtype=np.int8),
        np.cumsum(random.integers(0, 50_000, rows, dtype=np.int64)),
        None if candidates is None else random.integers(0, vocabulary + 5, candidates, dtype=np.int32),
        1_000_000_000,
        deadline_us,
    )
