"""The one place that names concrete classes: opens everything, starts the background tasks, closes in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.features.reader import FeatureReader
from services.inference.client import EngineControl, GrpcInferenceClient, InferenceClient
from services.recommender.catalogue import Catalogue
from services.recommender.components.hydrators.user_features import UserFeaturesHydrator
from services.recommender.experiments.registry.watcher import ExperimentWatcher
from services.recommender.experiments_wiring import ExperimentDoors, experiment_doors
from services.recommender.jobs.desk import JobDesk
from services.recommender.journal import Journal
from services.recommender.metrics import JournalMetrics, ServingMetrics, SlateMetrics
from services.recommender.pipeline_wiring import recommend_pipeline
from services.recommender.routes.desk import Desk
from services.recommender.routes.forward import Forwarder
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving import ServingState, StateHolder
from services.recommender.serving.catalogue_refresher import CatalogueRefresher
from services.recommender.serving.dependencies import DependencyWatcher
from services.recommender.serving.enroller import Enroller
from services.recommender.serving.frozen import FrozenSlates
from services.recommender.serving.new_items import NewItems
from services.recommender.serving.popular_refresher import PopularRefresher
from services.recommender.serving.readiness import ReadinessBoard
from services.recommender.serving.releases import ReleaseWatcher
from services.recommender.serving.slates import SlateServer
from services.recommender.serving.stored_slates import StoredSlates
from services.recommender.serving.variant_releases import VariantReleases
from services.recommender.warm_up import AROUND, warm_up
from shared.actions import ActionTable
from shared.contracts.manifest import Deployment
from shared.contracts.variant_release import VariantRelease
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.load import Loaded
from shared.settings.roots import Settings
from shared.storage import deployments, variant_releases
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.keys import KeyCache
from shared.storage.redis import connect, pool_use

PROCESS = "recommender"
# Python's 5 ms between thread switches would be a request's whole reserve whenever a refresh parses rows beside it.
SWITCH_INTERVAL_S = 0.001


@dataclass(frozen=True, slots=True)
class _Stores:
    """What is opened first and closed last. `engines`: None where somebody else's client was brought along."""

    database: Database
    redis: Redis
    redis_write: Redis
    reader: FeatureReader
    inference: InferenceClient
    engines: EngineControl | None
    artifacts: ArtifactStore
    keys: KeyCache


@dataclass(frozen=True, slots=True)
class _Followers:
    """The background readers that keep the serving state level with the database."""

    releases: ReleaseWatcher
    catalogue: CatalogueRefresher
    popular: PopularRefresher
    dependencies: DependencyWatcher
    new_items: NewItems | None
    experiments: ExperimentWatcher
    variants: VariantReleases

    def start(self, tasks: TaskOwner) -> None:
        tasks.start("catalogue", self.catalogue.run)
        tasks.start("popular", self.popular.run)
        tasks.start("releases", self.releases.run)
        tasks.start("dependencies", self.dependencies.run)
        tasks.start("experiments", self.experiments.run)
        tasks.start("variant releases", self.variants.run)
        if self.new_items is not None:
            tasks.start("new items", self.new_items.run)

    def loaded(self) -> bool:
        return self.catalogue.loaded and self.popular.loaded


@contextlib.asynccontextmanager
async def opened(
    loaded: Loaded, metrics: Metrics, board: ReadinessBoard, inference: InferenceClient | None = None
) -> AsyncIterator[Mapping[str, Any]]:
    """Yields what becomes `request.state`. No store needs to be up: each is found again by itself. Raises
    ConfigurationError for settings that cannot work and a state folder that cannot be written. `inference`: another
    client than that of the settings' targets; it is closed here."""
    settings = loaded.settings
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with contextlib.AsyncExitStack() as stack:
        stores = _open_stores(settings, inference, stack)
        tasks = TaskOwner(metrics=metrics)
        holder = StateHolder(ServingState.empty(Catalogue(settings.data)))
        journal = _journal(settings, stores, metrics, stack)
        stack.push_async_callback(tasks.close, drain_s=1.0)
        stack.callback(board.closed)
        await stores.keys.start(tasks)
        serving = ServingMetrics(metrics)
        followers = _followers(settings, stores, holder, serving)
        followers.start(tasks)
        tasks.start("journal drain", journal.drain)
        tasks.start("journal adoption", journal.adopt)
        pipeline = recommend_pipeline(
            settings,
            holder=holder,
            reader=stores.reader,
            inference=stores.inference,
            redis_write=stores.redis_write,
            tasks=tasks,
        )
        server = SlateServer(pipeline, holder, SlateMetrics(metrics))
        tasks.start("admission", server.admission.run)
        stack.push_async_callback(server.close)
        frozen = FrozenSlates(stores.redis, stores.redis_write)
        builder = QueryBuilder(settings.data)
        enroller = Enroller(
            followers.experiments.current,
            UserFeaturesHydrator(stores.reader),
            stores.redis_write,
            holder,
            tasks,
            builder.filter,
            left_out=lambda experiment: serving.waiting.labels(experiment).inc(),
        )
        desk = Desk(settings.recommender, builder, holder, server, frozen, journal, tasks, enroller)
        doors = experiment_doors(
            settings,
            database=stores.database,
            redis=stores.redis_write,
            reader=stores.reader,
            holder=holder,
            releases_status=lambda: followers.variants.status,
            stack=stack,
            metrics=metrics,
        )
        doors.start(tasks)
        tasks.start("resources", _resources(settings, stores, metrics).run)
        board.pin(loaded=followers.loaded, dependencies=lambda: _dependencies(followers, journal, doors, tasks))
        tasks.spawn("warm-up", _warm(followers, desk, board))
        state: dict[str, Any] = {
            "settings": settings,
            "loaded": loaded,
            "database": stores.database,
            "redis": stores.redis,
            "redis_write": stores.redis_write,
            "reader": stores.reader,
            "inference": stores.inference,
            "store": stores.artifacts,
            "keys": stores.keys,
            "metrics": metrics,
            "desk": desk,
            "jobs": JobDesk(stores.database, settings),
            **doors.state,
        }
        if settings.recommender.features_url:
            state["forwarder"] = Forwarder(settings.recommender.features_url)
            stack.push_async_callback(state["forwarder"].close)
        yield state


def _open_stores(settings: Settings, inference: InferenceClient | None, stack: contextlib.AsyncExitStack) -> _Stores:
    """Nothing here waits for a server."""
    database = Database(settings.database_url(), settings.database)
    stack.push_async_callback(asyncio.to_thread, database.close)
    redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.read_timeout_ms)
    stack.push_async_callback(redis.aclose, close_connection_pool=True)
    redis_write = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)
    stack.push_async_callback(redis_write.aclose, close_connection_pool=True)
    slates = StoredSlates(settings.jobs.batch_slate_ttl_s)
    actions = ActionTable.from_schema(settings.data)
    reader = FeatureReader(database, redis, settings.features, actions, stored_extras=slates)
    stack.push_async_callback(reader.close)
    engines: EngineControl | None = None
    if inference is None:
        key = settings.recommender.inference_key
        inference = engines = GrpcInferenceClient(
            settings.inference_targets(), key=None if key is None else key.get_secret_value()
        )
    stack.push_async_callback(inference.close)
    artifacts = ArtifactStore(settings.artifacts_dir())
    return _Stores(database, redis, redis_write, reader, inference, engines, artifacts, KeyCache(database))


def _journal(settings: Settings, stores: _Stores, metrics: Metrics, stack: contextlib.AsyncExitStack) -> Journal:
    journal = Journal(
        state=settings.state,
        process=PROCESS,
        database=stores.database,
        metrics=JournalMetrics(metrics),
        max_slates=settings.recommender.journal_max_slates,
    )
    stack.push_async_callback(journal.close)
    return journal


def _resources(settings: Settings, stores: _Stores, metrics: Metrics) -> ResourceMetrics:
    pools = {
        "database": stores.database.use,
        "redis": lambda: pool_use(stores.redis),
        "redis_write": lambda: pool_use(stores.redis_write),
    }
    return ResourceMetrics(metrics, state=settings.state, pools=pools)


def _followers(settings: Settings, stores: _Stores, holder: StateHolder, metrics: ServingMetrics) -> _Followers:
    database, reader, refresh_s = stores.database, stores.reader, settings.recommender.refresh_s

    def active() -> Deployment | None:
        with database.read() as connection:
            return deployments.active(connection)

    def wanted() -> tuple[VariantRelease, ...]:
        with database.read() as connection:
            return variant_releases.wanted(connection)

    new_items = None
    if stores.engines is not None:
        fields = [name for name, field in settings.data.item_fields.items() if field.feature]
        new_items = NewItems(stores.engines, fields, refresh_s=refresh_s)
    return _Followers(
        ReleaseWatcher(
            database=database,
            active=active,
            store=stores.artifacts,
            holder=holder,
            inference=stores.inference,
            metrics=metrics,
            refresh_s=refresh_s,
        ),
        CatalogueRefresher(
            database=database,
            reader=reader,
            holder=holder,
            metrics=metrics,
            refresh_s=refresh_s,
            heard=None if new_items is None else new_items.heard,
        ),
        PopularRefresher(
            database=database,
            reader=reader,
            holder=holder,
            actions=ActionTable.from_schema(settings.data),
            metrics=metrics,
            half_life_days=settings.recommender.popular_half_life_days,
        ),
        DependencyWatcher(redis=stores.redis, inference=stores.inference, holder=holder),
        new_items,
        ExperimentWatcher(database, settings.data, refresh_s=refresh_s),
        VariantReleases(
            database=database,
            wanted=wanted,
            store=stores.artifacts,
            holder=holder,
            inference=stores.inference,
            actions=ActionTable.from_schema(settings.data),
            refresh_s=refresh_s,
        ),
    )


async def _warm(followers: _Followers, desk: Desk, board: ReadinessBoard) -> None:
    """Ready only once everything was read and the code paths are warm."""
    await followers.catalogue.read.wait()
    await followers.popular.read.wait()
    # Else the first requests would find neither index nor model, and the warm-up would have warmed neither.
    await followers.releases.looked.wait()
    await warm_up(desk.server, desk.builder, desk.holder.current().popular.item_index[:AROUND])
    # What lives now lives as long as the process; a full collection that walks a catalogue takes 10 ms and more.
    gc.collect()
    gc.freeze()
    board.warm()


def _dependencies(
    followers: _Followers, journal: Journal, doors: ExperimentDoors, tasks: TaskOwner
) -> Mapping[str, str]:
    known = {
        "database": followers.releases.database_status,
        "redis": followers.dependencies.redis,
        "inference": followers.dependencies.inference,
        "release": followers.releases.status,
        "catalogue": followers.catalogue.status,
        "popular": followers.popular.status,
        "experiments": followers.experiments.status,
        "variant releases": followers.variants.status,
        "journal": journal.status,
        **doors.status(),
    }
    return {**known, **{f"task {name}": "given up; restart the process" for name in sorted(tasks.dead)}}
