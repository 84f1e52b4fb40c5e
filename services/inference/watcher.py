"""Follows the active release: what is promoted is loaded, warmed and switched to; what cannot be is reported, once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from services.inference.engine.engine import Engine
from shared.contracts.manifest import Deployment, IndexManifest, ModelManifest
from shared.contracts.variant_release import VariantRelease
from shared.errors import ArtifactError, DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.storage.artifacts import ArtifactStore

_log = get_logger(__name__)
_RETRY_REFUSED_S = 30.0
"""An operator may restore a damaged folder under the same version."""


async def _nothing() -> Sequence[VariantRelease]:
    return ()


class ModelWatcher:
    """`active` reads the deployment (raises DatabaseUnavailable). `database` and `model` say what readiness shows.
    `switching` is entered around every change of the loaded models (`ItemContents.switching`). `wanted` reads which
    releases variants of experiments ask for; `beside` says how that stands."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: ArtifactStore,
        active: Callable[[], Awaitable[Deployment | None]],
        refresh_s: float,
        switching: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
        wanted: Callable[[], Awaitable[Sequence[VariantRelease]]] = _nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = "not read yet"
        self.model = "no model is promoted yet"
        self.beside = "ok"
        self._engine = engine
        self._store = store
        self._active = active
        self._refresh_s = refresh_s
        self._switching = switching
        self._clock = clock
        self._refused: tuple[str, float] | None = None
        self._wanted = wanted
        self._refused_beside: dict[VariantRelease, tuple[str, float]] = {}
        self._models: dict[str, str | None] = {}
        """{index: the model that it was built from}, of those that variants asked for."""

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._refresh_s)

    async def look(self) -> None:
        """One round. While the database is down, what is loaded goes on serving."""
        if self._engine.slot.expire():
            _log.info("the previous model is dropped")
        try:
            deployment, wanted = await self._active(), await self._wanted()
        except DatabaseUnavailable as error:
            if self.database == "ok":
                _log.warning("the active release cannot be read; the present model goes on", detail=error.detail)
            self.database = error.detail
            return
        self.database = "ok"
        version = None if deployment is None else deployment.release.model_version
        if version is not None:
            await self._follow(version)
        await self._follow_beside(wanted)

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

    async def _follow_beside(self, wanted: Sequence[VariantRelease]) -> None:
        """What cannot be loaded keeps its experiment waiting, and harms nobody else."""
        now = self._clock()
        self._refused_beside = {
            one: refused for one, refused in self._refused_beside.items() if one in wanted and now < refused[1]
        }
        keep = set()
        for one in wanted:
            if one in self._refused_beside:
                continue
            try:
                version = await self._model_of(one)
                if version is not None:
                    await self._keep_beside(version)
                    keep.add(version)
            except SilkrecError as error:
                self._refused_beside[one] = (error.detail, now + _RETRY_REFUSED_S)
                _log.error("a variant's model is refused", model=one.model, index=one.index, detail=error.detail)
        if self._engine.slot.drop_beside(keep):
            _log.info("a variant's model is dropped", kept=sorted(keep))
        self.beside = "; ".join(sorted(detail for detail, _ in self._refused_beside.values())) or "ok"

    async def _keep_beside(self, version: str) -> None:
        if self._engine.slot.keep_beside(version):
            return
        begin = self._clock()
        async with self._switching():
            await asyncio.to_thread(self._load, version, beside=True)
        _log.info("a variant's model is loaded", model_version=version, seconds=round(self._clock() - begin, 3))

    async def _model_of(self, wanted: VariantRelease) -> str | None:
        """None: that of the active release. Raises ArtifactError."""
        if wanted.model is not None or wanted.index is None:
            return wanted.model
        if wanted.index not in self._models:
            manifest = await asyncio.to_thread(self._store.manifest, IndexManifest, wanted.index)
            self._models[wanted.index] = manifest.model_version
        return self._models[wanted.index]

    def _load(self, version: str, *, beside: bool = False) -> None:
        try:
            folder, manifest = self._store.open_folder(ModelManifest, version)
        except OSError as error:
            raise ArtifactError(f"model {version} cannot be read: {error}") from error
        if manifest.version != version:
            raise ArtifactError(f"{folder} holds model {manifest.version}; a folder bears its model's version")
        self._engine.load(folder, beside=beside)
