"""Slates of many users by the very pipeline of requests, one user after the other with a few under way at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.features.reader import FeatureReader
from services.inference.client import GrpcInferenceClient
from services.recommender.catalogue import Catalogue
from services.recommender.components.hydrators.user_features import UserFeaturesHydrator
from services.recommender.domain import Query, Slate
from services.recommender.jobs.work import SlateAsk, SlateSpec, UserSlate
from services.recommender.metrics import ServingMetrics
from services.recommender.pipeline import RecommendPipeline
from services.recommender.pipeline_wiring import limits_of, standard_stages
from services.recommender.routes.queries import QueryBuilder
from services.recommender.routes.requests import RankRequest, RecommendRequest
from services.recommender.serving import ServingState, StateHolder
from services.recommender.serving.catalogue_refresher import CatalogueRefresher
from services.recommender.serving.popular_refresher import PopularRefresher
from services.recommender.serving.releases import ReleaseWatcher
from shared.actions import ActionTable
from shared.contracts.history import Float32, Int32
from shared.contracts.manifest import Deployment, Release
from shared.errors import DatabaseUnavailable, InferenceUnavailable, SilkrecError
from shared.identity import split_user_key
from shared.observability.metrics import Metrics
from shared.observability.tasks import TaskOwner
from shared.settings.roots import Settings
from shared.storage import deployments
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.redis import connect

AT_ONCE = 8
# Nobody waits for the answer; what takes longer than this is down.
DEADLINE_S = 10.0
LOADED_S = 60.0
# Behind every request of a user (0).
PRIORITY = 1
NICE = 10


@dataclass(frozen=True)
class OnlineMaker:
    """SlateMaker over the pipeline of requests. Exploration and the batch source are off: a slate of a job must not
    depend on the slate of the job before."""

    pipeline: RecommendPipeline
    holder: StateHolder
    builder: QueryBuilder
    sources: frozenset[str]

    @property
    def release(self) -> Release | None:
        return self.holder.current().release

    async def slates(self, spec: SlateSpec, asks: Sequence[SlateAsk]) -> list[UserSlate]:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(ask: SlateAsk) -> UserSlate:
            async with room:
                return await self._slate(spec, ask)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(ask)) for ask in asks]
        return [task.result() for task in tasks]

    async def _slate(self, spec: SlateSpec, ask: SlateAsk) -> UserSlate:
        try:
            slate = await self.pipeline.run(self._query(spec, ask))
        except InferenceUnavailable:
            raise
        except SilkrecError as error:
            nothing: tuple[Int32, Float32] = (np.empty(0, np.int32), np.empty(0, np.float32))
            return UserSlate(ask.user_key, (), *nothing, error=f"{error.code}: {error.detail}")
        _refuse_without_engine(slate)
        catalogue = self.holder.current().catalogue
        items = slate.items.item_index
        names = tuple(catalogue.item_id(index) or "" for index in items.tolist())
        degraded = tuple(f"{one.stage}:{one.cause}" for one in slate.degraded)
        return UserSlate(ask.user_key, names, items, slate.items.score, degraded)

    def _query(self, spec: SlateSpec, ask: SlateAsk) -> Query:
        user_id, visitor_id = split_user_key(ask.user_key)
        who = {"user_id": user_id, "visitor_id": visitor_id, "scene": spec.scene, "filter": spec.filter}
        request: RecommendRequest | RankRequest
        if ask.item_ids:
            request = RankRequest.model_validate({**who, "diversity": spec.diversity, "input_list": list(ask.item_ids)})
        else:
            request = RecommendRequest.model_validate({**who, "diversity": spec.diversity})
        query = self.builder.build(
            request,
            catalogue=self.holder.current().catalogue,
            count=min(spec.count, len(ask.item_ids)) if ask.item_ids else spec.count,
            deadline=time.monotonic() + DEADLINE_S,
            now_us=time.time_ns() // 1000 if spec.now_s is None else spec.now_s * 1_000_000,
            exclude=np.empty(0, np.int32),
        )
        seed = secrets.randbits(63) if spec.seed is None else spec.seed
        return replace(query, exploration=0.0, seed=seed, priority=PRIORITY, sources=self.sources)


def _refuse_without_engine(slate: Slate) -> None:
    """A request takes the next rung of the ladder; a job has time, and waits for the engine."""
    if any(one.cause == InferenceUnavailable.code for one in slate.degraded):
        raise InferenceUnavailable("the inference service does not answer; the chunk waits for it", retry_after_s=2.0)


def lower_priority(_settings: Settings) -> None:
    """Of this process, for good: on a machine that it shares with the services, it gets what they leave."""
    os.nice(NICE)


@contextlib.asynccontextmanager
async def opened(settings: Settings, metrics: Metrics) -> AsyncIterator[OnlineMaker]:
    """Stores, followers and pipeline of one worker process. Raises DatabaseUnavailable when nothing could be read."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url(), settings.database)
        stack.push_async_callback(asyncio.to_thread, database.close)
        redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        actions = ActionTable.from_schema(settings.data)
        reader = FeatureReader(database, redis, settings.features, actions)
        stack.push_async_callback(reader.close)
        key = settings.recommender.inference_key
        inference = GrpcInferenceClient(
            settings.inference_targets(), key=None if key is None else key.get_secret_value()
        )
        stack.push_async_callback(inference.close)
        tasks = TaskOwner(metrics=metrics)
        stack.push_async_callback(tasks.close)
        holder = StateHolder(ServingState.empty(Catalogue(settings.data)))
        await _follow(settings, database, reader, inference, holder, ServingMetrics(metrics), tasks)
        stages = standard_stages(settings, user=UserFeaturesHydrator(reader), inference=inference, side_effects=())
        limits = replace(limits_of(settings.recommender), usual_s=DEADLINE_S)
        pipeline = RecommendPipeline(stages, current=holder.current, limits=limits)
        names = frozenset(source.name for source in stages.sources) - {"batch"}
        yield OnlineMaker(pipeline, holder, QueryBuilder(settings.data), names)


async def _follow(
    settings: Settings,
    database: Database,
    reader: FeatureReader,
    inference: GrpcInferenceClient,
    holder: StateHolder,
    metrics: ServingMetrics,
    tasks: TaskOwner,
) -> None:
    """Starts the followers and waits until each has read once."""

    def active() -> Deployment | None:
        with database.read() as connection:
            return deployments.active(connection)

    refresh_s = settings.recommender.refresh_s
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
    releases = ReleaseWatcher(
        database=database,
        active=active,
        store=ArtifactStore(settings.artifacts_dir()),
        holder=holder,
        inference=inference,
        metrics=metrics,
        refresh_s=refresh_s,
    )
    tasks.start("catalogue", catalogue.run)
    tasks.start("popular", popular.run)
    try:
        async with asyncio.timeout(LOADED_S):
            await catalogue.read.wait()
            await popular.read.wait()
            await releases.look()
    except TimeoutError:
        raise DatabaseUnavailable(f"catalogue and popularity could not be read within {LOADED_S:g} s") from None
    tasks.start("releases", releases.run)
