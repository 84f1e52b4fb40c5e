"""Opens what stands behind the doors and closes it in reverse order: database, engine, watcher, gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from services.inference import describe, engine_check, frames
from services.inference.caller import CallerCheck
from services.inference.contents import ItemContents
from services.inference.control import Control
from services.inference.engine.capability import Machine
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.scheduler import BatchPolicy
from services.inference.engine.tiers import CacheOptions
from services.inference.forgetting import Departed, Forgetting, deleted_since
from services.inference.gpu import Gpu
from services.inference.grpc import GrpcServer, InferenceServicer
from services.inference.infer_call import InferCall
from services.inference.metrics import DoorMetrics, EngineMetrics
from services.inference.near_door import NearDoor
from services.inference.watcher import ModelWatcher
from shared.contracts.manifest import Deployment
from shared.contracts.variant_release import VariantRelease
from shared.errors import DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.load import Loaded
from shared.settings.roots import InferenceSettings, Settings
from shared.storage import deployments, variant_releases
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import Database
from shared.storage.keys import KeyCache
from shared.web.auth import check_binding
from shared.web.health import Readiness

# With Python's 5 ms the device thread would wait that long for the lock whenever a door parses a message.
SWITCH_INTERVAL_S = 0.0005
_GRACE_S = 2.0
_METRICS_S = 1.0
_COSTS_S = 60.0
_log = get_logger(__name__)


class Board:
    """What /ready and /health say; `engine` and `watcher` are pinned once they exist."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.watcher: ModelWatcher | None = None
        self.tasks: TaskOwner | None = None

    def ready(self) -> Readiness:
        if self.engine is None or self.watcher is None or self.tasks is None:
            return Readiness(False, {"engine": "is starting"})
        failure = self.engine.failure
        told = {
            "engine": "ok" if failure is None else f"its thread died of {type(failure).__name__}; restart the process",
            "model": self.watcher.model,
            "variant models": self.watcher.beside,
            "database": self.watcher.database,
        }
        told |= {f"task {name}": "given up; restart the process" for name in sorted(self.tasks.dead)}
        return Readiness(describe.is_ready(self.engine), told)

    def alive(self) -> bool:
        """False once the device's thread died, or the watcher was given up: only a new process helps."""
        if self.engine is None or self.tasks is None:
            return True
        return self.engine.failure is None and not self.tasks.dead


def engine_options(settings: InferenceSettings, state: Path | None = None) -> EngineOptions:
    """`state`: the folder under which learned costs are kept."""
    cache = settings.cache
    return EngineOptions(
        policy=_policy(settings),
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        max_rows=settings.max_sequence_length,
        cache=CacheOptions(cache.enabled, cache.device_mb << 20, cache.host_mb * (1 << 20), cache.page_rows),
        state_dir=None if state is None else state / "inference" / "costs",
    )


def _policy(settings: InferenceSettings) -> BatchPolicy:
    """Without dynamic batching a batch is what waits already, `batch_size` at most."""
    batching = settings.dynamic_batching
    size = batching.max_batch_size if batching.enabled else settings.batch_size
    return BatchPolicy(
        max_batch_size=size,
        preferred_batch_size=tuple(preferred for preferred in batching.preferred_batch_size if preferred <= size),
        max_queue_delay_s=batching.max_queue_delay_ms * 1e-3 if batching.enabled else 0.0,
        max_queue_size=batching.max_queue_size,
        max_batch_s=batching.max_batch_ms * 1e-3,
        max_idle_batch_s=batching.max_idle_batch_ms * 1e-3,
        lower_share=batching.job_share,
        enabled=batching.enabled or size > 1,
    )


@contextlib.asynccontextmanager
async def opened(loaded: Loaded, metrics: Metrics, board: Board) -> AsyncIterator[Mapping[str, Any]]:
    """Yields what becomes `request.state`. Neither a database nor a model needs to be there: both are found later.
    Raises ConfigurationError for a device, port or socket that cannot be had, and for what `engine_check` refuses."""
    settings = loaded.settings
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url(), settings.database)
        stack.push_async_callback(asyncio.to_thread, database.close)
        engine = Engine(engine_options(settings.inference, settings.state))
        await asyncio.to_thread(engine_check.check, settings.inference, Machine(engine.device))
        exported = EngineMetrics(metrics)
        exported.follow(engine)
        engine.start()
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        tasks = TaskOwner(metrics=metrics)
        stack.push_async_callback(tasks.close)
        keys = KeyCache(database)
        await keys.start(tasks)
        _check_tcp(settings.inference, keys)
        store = ArtifactStore(settings.artifacts_dir())
        contents = ItemContents(engine, store, settings.data)
        watcher = _watcher(settings, engine, store, database, contents)
        board.engine, board.watcher, board.tasks = engine, watcher, tasks
        socket, tcp = settings.socket_path("inference"), _tcp(settings.inference)
        callers, doors = CallerCheck(keys), DoorMetrics(metrics)
        control = Control(engine, contents, callers, doors)
        door = GrpcServer(InferenceServicer(engine, callers, doors), control.handler(), socket=socket, tcp=tcp)
        await door.start()
        stack.push_async_callback(door.stop, _GRACE_S)
        near = NearDoor(InferCall(engine, doors, "near"), frames.socket_beside(socket))
        await near.start()
        stack.push_async_callback(near.stop, _GRACE_S)
        tasks.start("model watcher", watcher.run)
        tasks.start("deleted users", _forgetting(settings, engine, database, doors).run)
        gpu = await asyncio.to_thread(Gpu, engine.device_uuid)
        tasks.start("engine metrics", lambda: _export(exported, engine, gpu))
        pools = {"database": database.use}
        tasks.start("resources", ResourceMetrics(metrics, state=settings.state, pools=pools).run)
        tasks.start("engine costs", lambda: _keep_costs(engine))
        yield {
            "settings": settings,
            "loaded": loaded,
            "database": database,
            "store": store,
            "keys": keys,
            "metrics": metrics,
            "engine": engine,
            "contents": contents,
            "doors": doors,
            "watcher": watcher,
            "grpc": door,
        }


def _forgetting(settings: Settings, engine: Engine, database: Database, doors: DoorMetrics) -> Forgetting:
    def read(since_us: int) -> list[Departed]:
        with database.read() as connection:
            return deleted_since(connection, since_us)

    async def departed(since_us: int) -> list[Departed]:
        return await database.run(read, since_us)

    return Forgetting(engine, departed, doors.forgot, refresh_s=settings.inference.refresh_s)


def _watcher(
    settings: Settings, engine: Engine, store: ArtifactStore, database: Database, contents: ItemContents
) -> ModelWatcher:
    def read() -> Deployment | None:
        with database.read() as connection:
            return deployments.active(connection)

    async def active() -> Deployment | None:
        return await database.run(read)

    def read_wanted() -> tuple[VariantRelease, ...]:
        with database.read() as connection:
            return variant_releases.wanted(connection)

    async def wanted() -> tuple[VariantRelease, ...]:
        return await database.run(read_wanted)

    return ModelWatcher(
        engine=engine,
        store=store,
        active=active,
        refresh_s=settings.inference.refresh_s,
        switching=contents.switching,
        wanted=wanted,
    )


def _check_tcp(settings: InferenceSettings, keys: KeyCache) -> None:
    """Raises ConfigurationError. While the database is away nobody knows, and `CallerCheck` refuses all of TCP."""
    if settings.grpc_port < 0:
        return
    with contextlib.suppress(DatabaseUnavailable):
        check_binding(settings.host, keys.has_keys())


def _tcp(settings: InferenceSettings) -> str | None:
    if settings.grpc_port < 0:
        return None
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.grpc_port}"


async def _keep_costs(engine: Engine) -> None:
    """A disk that is full costs a restart its head start, and nothing else."""
    while True:
        await asyncio.sleep(_COSTS_S)
        try:
            await asyncio.to_thread(engine.save_costs)
        except (OSError, SilkrecError) as error:
            _log.warning("learned costs could not be kept", detail=str(error))


async def _export(exported: EngineMetrics, engine: Engine, gpu: Gpu) -> None:
    while True:
        exported.sync(engine)
        exported.show(await asyncio.to_thread(gpu.use))
        await asyncio.sleep(_METRICS_S)
