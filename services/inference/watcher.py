"""Follows the active release: what is promoted is loaded, warmed and switched to; what cannot be is reported, once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from services.inference.engine.engine import Engine
from shared.contracts.manifest import Deployment, ModelManifest
from shared.errors import ArtifactError, DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.storage.artifacts import ArtifactStore

_log = get_logger(__name__)
_RETRY_REFUSED_S = 30.0
"""An operator may restore a damaged folder under the same version."""


class ModelWatcher:
    """`active` reads the deployment (raises DatabaseUnavailable). `database` and `model` say what readiness shows.
    `switching` is entered around every change of the active model (`ItemContents.switching`)."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: ArtifactStore,
        active: Callable[[], Awaitable[Deployment | None]],
        refresh_s: float,
        switching: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = "not read yet"
        self.model = "no model is promoted yet"
        self._engine = engine
        self._store = store
        self._active = active
        self._refresh_s = refresh_s
        self._switching = switching
        self._clock = clock
        self._refused: tuple[str, float] | None = None

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._refresh_s)

    async def look(self) -> None:
        """One round. While the database is down, what is loaded goes on serving."""
        if self._engine.slot.expire():
            _log.info("the previous model is dropped")
        try:
            deployment = await self._active()
        except DatabaseUnavailable as error:
            if self.database == "ok":
                _log.warning("the active release cannot be read; the present model goes on", detail=error.detail)
            self.database = error.detail
            return
        self.database = "ok"
        version = None if deployment is None else deployment.release.model_version
        if version is not None:
            await self._follow(version)

    async def _follow(self, version: str) -> None:
        active = self._engine.slot.active
        if active is not None and active.version == version:
            self.model, self._refused = "ok", None
            return
        if self._refused is not None and self._refused[0] == version and self._clock() < self._refused[1]:
            return
        begin = self._clock()
        try:
            async with self._switching():
                if not self._engine.restore(version):
                    await asyncio.to_thread(self._load, version)
        except SilkrecError as error:
            self._refused = (version, self._clock() + _RETRY_REFUSED_S)
            self.model = f"{version} was refused: {error.detail}"
            kept = None if active is None else active.version
            _log.error("a model is refused", model_version=version, detail=error.detail, serving=kept, exc_info=error)
            return
        self.model, self._refused = "ok", None
        _log.info("a model is taken into service", model_version=version, seconds=round(self._clock() - begin, 3))

    def _load(self, version: str) -> None:
        try:
            folder, manifest = self._store.open_folder(ModelManifest, version)
        except OSError as error:
            raise ArtifactError(f"model {version} cannot be read: {error}") from error
        if manifest.version != version:
            raise ArtifactError(f"{folder} holds model {manifest.version}; a folder bears its model's version")
        self._engine.load(folder)
