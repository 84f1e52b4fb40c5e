"""Follows the active release: opens its index beside the one in use, then swaps. Rolling back is the same path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from services.recommender.metrics import ServingMetrics
from services.recommender.retrieval.index import RetrievalIndex
from services.recommender.serving.state import StateHolder
from services.recommender.serving.threads import Threads
from shared.contracts.manifest import Deployment, ModelManifest, Release
from shared.errors import ArtifactError, DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.artifacts import ArtifactStore

_log = get_logger(__name__)
# The engine keeps the previous model for 60 s after its own swap, so waiting half of that never leaves us without one.
MODEL_WAIT_S = 30.0
# A folder may be restored by hand; hashing a large one again every second would be a load of its own.
RETRY_S = 10.0


class ModelReadiness(Protocol):
    """The part of InferenceClient that a swap needs."""

    async def ready(self, model_version: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Opened:
    """A release that can be served, waiting for the engines. `since`: monotonic seconds."""

    release: Release
    model: ModelManifest | None
    index: RetrievalIndex | None
    since: float


@dataclass(frozen=True, slots=True)
class _Refused:
    release: Release
    reason: str
    at: float


class ReleaseWatcher:
    """`run()` for ever in one task. `status` is for /ready: `ok`, or what is wrong; the last good release stays.

    `active` reads the newest deployment, blocking.
    """

    def __init__(
        self,
        *,
        database: Threads,
        active: Callable[[], Deployment | None],
        store: ArtifactStore,
        holder: StateHolder,
        inference: ModelReadiness,
        metrics: ServingMetrics,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._active = active
        self._store = store
        self._holder = holder
        self._inference = inference
        self._metrics = metrics
        self._refresh_s = refresh_s
        self._clock = clock
        self._sleep = sleep
        self._opened: _Opened | None = None
        self._refused: _Refused | None = None
        self.database_status = "not asked yet"
        self.looked = asyncio.Event()
        """Set once a release was taken into service, refused, found missing, or could not be asked for."""

    @property
    def status(self) -> str:
        if self._refused is not None:
            kept = self._holder.current().release_name or "none"
            return f"{self._refused.release.release} is refused: {self._refused.reason}; served: {kept}"
        if self._opened is not None:
            return f"{self._opened.release.release} is open and waits for inference"
        return "ok" if self._holder.current().release is not None else "none promoted yet"

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            finally:
                self.looked.set()
            await self._sleep(self._refresh_s)

    async def look(self) -> None:
        """One comparison with the database, and at most one swap."""
        try:
            deployment = await self._database.run(self._active)
        except DatabaseUnavailable as error:
            self.database_status = error.detail
            self._metrics.refresh_failures.labels("release").inc()
            return
        self.database_status = "ok"
        if deployment is not None:
            await self._follow(deployment.release)

    async def _follow(self, release: Release) -> None:
        if release == self._holder.current().release:
            self._opened = self._refused = None
            return
        if self._opened is None or self._opened.release != release:
            self._opened = None
            refused = self._refused
            if refused is not None and refused.release == release and self._clock() - refused.at < RETRY_S:
                return
            await self._open(release)
        if self._opened is not None and await self._may_swap(self._opened):
            self._swap(self._opened)

    async def _open(self, release: Release) -> None:
        try:
            model, index = await asyncio.to_thread(self._read, release)
        except ArtifactError as error:
            self._refuse(release, error.detail, error.code)
        except Exception as error:  # noqa: BLE001  (whatever a damaged file does to a reader, the served release stays)
            _log.error("a release could not be opened", release=release.release, exc_info=error)
            self._refuse(release, f"{type(error).__name__}: {error}"[:300], "unexpected")
        else:
            self._refused = None
            self._opened = _Opened(release, model, index, self._clock())

    def _refuse(self, release: Release, reason: str, cause: str) -> None:
        if self._refused is None or self._refused.release != release:
            _log.error("a release is refused and the last good one stays", release=release.release, reason=reason)
        self._refused = _Refused(release, reason, self._clock())
        self._metrics.refused.labels(cause).inc()

    def _read(self, release: Release) -> tuple[ModelManifest | None, RetrievalIndex | None]:
        """In a worker thread: hashing and reading files. Raises ArtifactError."""
        current = self._holder.current()
        model = None if release.model_version is None else self._store.manifest(ModelManifest, release.model_version)
        if release.index_version is None:
            return model, None
        opened = [current.index, *(beside.index for beside in current.beside.values())]
        known = (one for one in opened if one is not None and one.version == release.index_version)
        index = next(known, None) or RetrievalIndex.open(self._store, release.index_version)
        if index.model_version not in (None, release.model_version):
            raise ArtifactError(
                f"index {index.version} was built from model {index.model_version}, and the release names "
                f"{release.model_version}: their vectors do not compare; build an index from that model"
            )
        return model, index

    async def _may_swap(self, opened: _Opened) -> bool:
        """Not before the engines can serve the new model; but never wait for an engine that is of no use now."""
        served = self._holder.current()
        version = opened.release.model_version
        if version is None or served.model_version is None or version == served.model_version:
            return True
        if await self._inference.ready(version) or not await self._inference.ready(served.model_version):
            return True
        if self._clock() - opened.since < MODEL_WAIT_S:
            return False
        _log.warning("inference is not ready for a release that is taken anyway", release=opened.release.release)
        return True

    def _swap(self, opened: _Opened) -> None:
        self._holder.swap(release=opened.release, model=opened.model, index=opened.index)
        self._opened = None
        self._metrics.swaps.inc()
        index = opened.index
        self._metrics.has_model.set(opened.release.model_version is not None)
        self._metrics.index_items.set(0 if index is None else index.item_count)
        self._metrics.index_created.set(0 if index is None else index.manifest.created_at.timestamp())
        _log.info(
            "release taken into service",
            release=opened.release.release,
            model_version=opened.release.model_version,
            index_version=opened.release.index_version,
        )
