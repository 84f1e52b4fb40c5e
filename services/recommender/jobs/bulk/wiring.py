"""Opens what a worker needs to make slates: the recommender's stores and followers, without its doors and journal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from services.features.reader import FeatureReader
from services.inference.client import GrpcInferenceClient
from services.recommender.catalogue import Catalogue
from services.recommender.experiments.registry.watcher import ExperimentWatcher
from services.recommender.jobs.bulk.inference import PATIENCE_S, PatientInference
from services.recommender.jobs.bulk.maker import BulkSlates
from services.recommender.metrics import ServingMetrics
from services.recommender.pipeline_wiring import bulk_pipelines
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving import ServingState, StateHolder
from services.recommender.serving.catalogue_refresher import CatalogueRefresher
from services.recommender.serving.popular_refresher import PopularRefresher
from services.recommender.serving.releases import ReleaseWatcher
from shared.actions import ActionTable
from shared.contracts.manifest import Deployment
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.redis import connect, pool_use

READ_S = 60.0
"""Until the first look at the catalogue and the counts is over."""


def lower_priority(settings: Settings) -> None:
    """Of this process, for good: on a machine that it shares with the services, the scheduler gives it their rest."""
    os.nice(max(0, settings.jobs.nice - os.nice(0)))


@contextlib.asynccontextmanager
async def opened(settings: Settings, metrics: Metrics, *, patience_s: float = PATIENCE_S) -> AsyncIterator[BulkSlates]:
    """Ready to make slates; follows releases, items and counts until it is closed. `patience_s`: with an engine that is
    away. Raises TimeoutError when the database does not let itself be read within a minute."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url(), settings.database)
        stack.push_async_callback(asyncio.to_thread, database.close)
        # A group's histories are megabytes: the time-out of a request's 27 KB would fail every other one.
        redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        reader = FeatureReader(database, redis, settings.features, ActionTable.from_schema(settings.data))
        stack.push_async_callback(reader.close)
        client = _client(settings)
        stack.push_async_callback(client.close)
        tasks = TaskOwner(metrics=metrics)
        stack.push_async_callback(tasks.close)
        pools = {"database": database.use, "redis": lambda: pool_use(redis)}
        tasks.start("resources", ResourceMetrics(metrics, state=settings.state, pools=pools).run)
        holder = StateHolder(ServingState.empty(Catalogue(settings.data)))
        experiments = ExperimentWatcher(database, settings.data, refresh_s=settings.recommender.refresh_s)
        await _follow(settings, database, reader, client, holder, experiments, tasks, ServingMetrics(metrics))
        inference = PatientInference(client, patience_s=patience_s)
        stack.push_async_callback(inference.close)
        yield _maker(settings, holder, reader, inference, experiments)


def _client(settings: Settings) -> GrpcInferenceClient:
    key = settings.recommender.inference_key
    return GrpcInferenceClient(settings.inference_targets(), key=None if key is None else key.get_secret_value())


def _maker(
    settings: Settings,
    holder: StateHolder,
    reader: FeatureReader,
    inference: PatientInference,
    experiments: ExperimentWatcher,
) -> BulkSlates:
    def shipped(scene: str) -> Mapping[str, Any]:
        found = experiments.current().scene(scene)
        return {} if found is None else found.shipped

    return BulkSlates(
        holder=holder,
        reader=reader,
        builder=QueryBuilder(settings.data),
        pipeline_of=bulk_pipelines(settings, reader=reader, inference=inference.group),
        shipped=shipped,
    )


async def _follow(
    settings: Settings,
    database: Database,
    reader: FeatureReader,
    client: GrpcInferenceClient,
    holder: StateHolder,
    experiments: ExperimentWatcher,
    tasks: TaskOwner,
    metrics: ServingMetrics,
) -> None:
    """Returns when everything was read once."""
    refresh_s = settings.recommender.refresh_s

    def active() -> Deployment | None:
        with database.read() as connection:
            return deployments.active(connection)

    releases = ReleaseWatcher(
        database=database,
        active=active,
        store=ArtifactStore(settings.artifacts_dir()),
        holder=holder,
        inference=client,
        metrics=metrics,
        refresh_s=refresh_s,
    )
    catalogue = CatalogueRefresher(
        database=database, reader=reader, holder=holder, metrics=metrics, refresh_s=refresh_s
    )
    popular = PopularRefresher(
        database=database,
        reader=reader,
        holder=holder,
        actions=ActionTable.from_schema(settings.data),
        metrics=metrics,
        half_life_days=settings.recommender.popular_half_life_days,
    )
    tasks.start("catalogue", catalogue.run)
    async with asyncio.timeout(READ_S):
        await catalogue.read.wait()
        tasks.start("popular", popular.run)
        await popular.read.wait()
    await releases.look()
    await experiments.look()
    tasks.start("releases", releases.run)
    tasks.start("experiments", experiments.run)
    gc.collect()
    gc.freeze()  # what lives now lives as long as the process
