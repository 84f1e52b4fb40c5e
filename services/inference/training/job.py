"""The whole job of `silkrec train`: events from the database, a trained ranker, a published folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from services.features.reader import FeatureReader, ItemRow
from services.inference.model.config import ModelConfig
from services.inference.training.content import Content
from services.inference.training.loop import Progress, Report, train
from services.inference.training.plan import TrainingPlan
from services.inference.training.publish import publish
from shared.actions import ActionTable
from shared.contracts.manifest import ModelManifest
from shared.errors import ConfigurationError, NotFound
from shared.schema import Schema
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database

_PAGE = 5000


def run(
    settings: Settings,
    reader: FeatureReader,
    database: Database,
    plan: TrainingPlan,
    report: Report,
    *,
    scene: str,
    device: str | None = None,
) -> ModelManifest:
    """`scene`: whose weights order the slates that are measured; `device`: inference.device of the settings.

    Raises ConfigurationError, NotFound, DatabaseUnavailable, SilkrecError.
    """
    torch.set_num_threads(threads())
    where = usable_device(device or settings.inference.device)
    schema = settings.data
    weights = scene_weights(schema, scene)
    report(Progress("reading", 0.0, 0, 1, plan.max_seconds))
    items = read_items(reader)
    events = reader.training_events()
    vocabulary = 1 + max([0, *(item.item_index for item in items), *events.item.tolist()])

    def content(config: ModelConfig) -> Content:
        return Content.of(
            items, schema, vocabulary=vocabulary, width=config.content_tokens, most=config.content_vocabulary
        )

    trained = train(events, content, plan, weights, report, vocabulary=vocabulary, device=where)
    revision = max((item.revision for item in items), default=0)
    return publish(trained, ArtifactStore(settings.artifacts_dir()), database, schema, catalogue_version=revision)


def usable_device(name: str) -> torch.device:
    """`auto`: cuda where there is one. Raises ConfigurationError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"torch cannot train on {name!r} here ({error})") from None


def threads() -> int:
    """Half of the usable cores, at least one. On 2 cores that a second process shares, an epoch of MovieLens-100K took
    4.6 CPU seconds with one thread and 20 with two, which spin at each of a thousand barriers a step."""
    return max(1, len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 2) // 2)


def read_items(reader: FeatureReader) -> list[ItemRow]:
    """The whole catalogue, deleted items too: their rows stay theirs."""
    items: list[ItemRow] = []
    while True:
        page = reader.changed_items(items[-1].revision if items else -1, _PAGE)
        items += page
        if not page:
            return items


def scene_weights(schema: Schema, scene: str) -> Mapping[int, float]:
    """Action code to weight. Raises NotFound."""
    if scene not in schema.scenes:
        raise NotFound(f"there is no scene {scene!r}; silkrec.yaml declares {', '.join(schema.scenes)}")
    actions = ActionTable.from_schema(schema)
    return {actions.by_name[name].code: weight for name, weight in schema.scenes[scene].weights.items()}
