"""From events in the database to a published model that the engine can load."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import insert, select

from services.features.ingest.rows import EventRow
from services.features.ingest.writer import commit_events
from services.features.reader import FeatureReader
from services.inference.model import checkpoint
from services.inference.training import job
from services.inference.training.content import Tokeniser
from services.inference.training.loop import Progress
from services.inference.training.publish import TOKENS
from shared.actions import ActionTable
from shared.contracts.manifest import ModelManifest
from shared.errors import ConfigurationError, NotFound
from shared.settings.roots import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.redis import connect
from shared.storage.tables import items, models
from tests.conftest import SettingsFactory
from tests.unit.training.synthetic import ITEMS, walks
from tests.unit.training.test_training import PLAN

pytestmark = pytest.mark.integration
QUICK = replace(PLAN, next_item=replace(PLAN.next_item, epochs=3), max_seconds=30.0)


def fill(database: Database, actions: ActionTable) -> None:
    now_us = time.time_ns() // 1000
    known = [
        {
            "item_index": number,
            "item_id": f"i{number}",
            "known": True,
            "categories": [f"ring {number % 4}"],
            "is_hidden": False,
            "created_at_us": now_us,
            "properties": {},
            "embeddings": {},
            "revision": number,
            "updated_at_us": now_us,
        }
        for number in range(1, ITEMS)
    ]
    with database.write() as connection:
        connection.execute(insert(items), known)
    events, click = walks(), actions.by_name["click"].code
    rows = [
        EventRow(f"e{place}", f"u:{user}", f"i{item}", click, None, int(at) * 1_000_000, now_us)
        for place, (user, item, at) in enumerate(zip(events.user, events.item, events.time, strict=True))
    ]
    commit_events(database, rows, actions, now_us)


def train(settings: Settings, database: Database, told: list[Progress], scene: str = "home") -> ModelManifest:
    async def body() -> ModelManifest:
        redis = connect(settings.redis_url(), settings.redis, timeout_ms=100)
        reader = FeatureReader(database, redis, settings.features, ActionTable.from_schema(settings.data))
        try:
            return await asyncio.to_thread(job.run, settings, reader, database, QUICK, told.append, scene=scene)
        finally:
            await reader.close()
            await redis.aclose(close_connection_pool=True)

    return asyncio.run(body())


def test_events_become_a_model_folder_that_is_whole_and_registered(
    database: Database, settings_factory: SettingsFactory
) -> None:
    settings = settings_factory().settings
    fill(database, ActionTable.from_schema(settings.data))
    told: list[Progress] = []
    manifest = train(settings, database, told)
    store = ArtifactStore(settings.artifacts_dir())
    folder, read = store.open_folder(ModelManifest, manifest.version)
    assert read == manifest
    assert (read.vocabulary, read.catalogue_version) == (ITEMS, ITEMS - 1)
    assert [action.name for action in read.actions] == ["click"]
    assert {"ndcg_at_10", "hr_at_10", "popular_ndcg_at_10", "train_s", "epochs"} <= read.metrics.keys()
    assert np.load(folder / checkpoint.ITEM_VECTORS).shape == (ITEMS, read.vector_dim)
    kept = Tokeniser.loads((folder / TOKENS).read_text(), width=0, features={})
    assert kept.tokens[0].startswith("category=ring")
    loaded = checkpoint.load(folder)
    assert loaded.version == manifest.version
    assert told[0].phase == "reading"
    with database.read() as connection:
        row = connection.execute(select(models)).one()
    assert (row.version, row.kind, row.manifest["metrics"]) == (manifest.version, "model", manifest.metrics)


def test_an_unknown_scene_is_named_before_anything_is_read(
    database: Database, settings_factory: SettingsFactory
) -> None:
    with pytest.raises(NotFound, match="home"):
        train(settings_factory().settings, database, [], scene="nowhere")


def test_a_device_that_is_not_there_is_named_before_anything_is_read() -> None:
    assert job.usable_device("cpu").type == "cpu"
    assert job.usable_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigurationError, match="'abacus'"):
        job.usable_device("abacus")
