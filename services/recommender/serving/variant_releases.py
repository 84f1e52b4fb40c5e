"""Keeps the releases that variants serve open beside the active one, and says which of them can be served now.

An experiment leaves everybody out until all its releases can be served here: units of one variant alone being exposed
would be a sample-ratio mismatch.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from services.recommender.retrieval.index import RetrievalIndex
from services.recommender.serving.releases import RETRY_S, ModelReadiness
from services.recommender.serving.state import Beside, ServingState, StateHolder
from services.recommender.serving.threads import Threads
from shared.actions import ActionTable
from shared.contracts.manifest import ModelManifest, Release
from shared.contracts.variant_release import VariantRelease
from shared.errors import ArtifactError, DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.artifacts import ArtifactStore

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Tried:
    """`beside` None: refused for `reason`. `active`: the release that what was left out was taken from."""

    active: Release | None
    at: float
    beside: Beside | None = None
    reason: str = ""


class VariantReleases:
    """`run()` for ever in one task. `status` is for /ready. `wanted` reads the database, blocking."""

    def __init__(
        self,
        *,
        database: Threads,
        wanted: Callable[[], Sequence[VariantRelease]],
        store: ArtifactStore,
        holder: StateHolder,
        inference: ModelReadiness,
        actions: ActionTable,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._wanted = wanted
        self._store = store
        self._holder = holder
        self._inference = inference
        self._actions = actions
        self._refresh_s = refresh_s
        self._clock = clock
        self._sleep = sleep
        self._tried: dict[VariantRelease, _Tried] = {}
        self.status = "ok"

    async def run(self) -> None:
        while True:
            await self.look()
            await self._sleep(self._refresh_s)

    async def look(self) -> None:
        """One comparison with the database. While it is away, what is open stays."""
        try:
            wanted = await self._database.run(self._wanted)
        except DatabaseUnavailable:
            wanted = tuple(self._tried)
        self._tried = {one: tried for one, tried in self._tried.items() if one in wanted}
        ready, waits = {}, []
        for one in wanted:
            tried = await self._try(one)
            if tried.beside is None:
                waits.append(f"{_words(one)} is refused: {tried.reason}")
            elif await self._is_served(tried.beside):
                ready[one] = tried.beside
            else:
                waits.append(f"{_words(one)} is open and waits for inference")
        self.status = "; ".join(waits) or "ok"
        if ready != self._holder.current().beside:
            self._holder.swap(beside=MappingProxyType(ready))
            _log.info("variant releases changed", served=[_words(one) for one in ready], waiting=waits)

    async def _try(self, wanted: VariantRelease) -> _Tried:
        state, known = self._holder.current(), self._tried.get(wanted)
        if known is not None and known.active == state.release and not self._is_due(known):
            return known
        try:
            beside = await asyncio.to_thread(self._open, wanted, state)
            tried = _Tried(state.release, self._clock(), beside)
        except Exception as error:  # noqa: BLE001  (whatever a damaged file does to a reader, the active release serves)
            reason = error.detail if isinstance(error, ArtifactError) else f"{type(error).__name__}: {error}"[:300]
            _log.error("a variant's release cannot be served", release=_words(wanted), reason=reason)
            tried = _Tried(state.release, self._clock(), reason=reason)
        self._tried[wanted] = tried
        return tried

    def _is_due(self, tried: _Tried) -> bool:
        return tried.beside is None and self._clock() - tried.at >= RETRY_S

    def _open(self, wanted: VariantRelease, state: ServingState) -> Beside:
        """In a worker thread. Raises ArtifactError."""
        index = self._index(wanted.index, state)
        model_version = wanted.model or index.model_version or state.model_version
        if index.model_version not in (None, model_version):
            raise ArtifactError(
                f"index {index.version} was built from model {index.model_version}, not {model_version}: their vectors "
                "do not compare; name an index of that model"
            )
        model = None if model_version is None else self._store.manifest(ModelManifest, model_version)
        if model is not None:
            self._check_actions(model)
        # Redis keeps scores by release: they must not outlive a change of what they were made by.
        digest = hashlib.sha256(f"{model_version}|{index.version}".encode()).hexdigest()
        release = Release(release=f"variant-{digest[:12]}", model_version=model_version, index_version=index.version)
        return Beside(release, model, index)

    def _check_actions(self, model: ModelManifest) -> None:
        """A history's codes must mean to the model what they mean here, as `silkrec releases promote` asks too."""
        for action in model.actions:
            declared = self._actions.by_code.get(action.code)
            if declared is None or declared.name != action.name:
                named = "nothing" if declared is None else declared.name
                raise ArtifactError(
                    f"model {model.version} calls action {action.code} {action.name}, here it is {named}"
                )

    def _index(self, version: str | None, state: ServingState) -> RetrievalIndex:
        opened = [state.index, *(tried.beside.index for tried in self._tried.values() if tried.beside is not None)]
        for index in opened:
            if index is not None and version in (None, index.version):
                return index
        if version is None:
            raise ArtifactError("no index is active that a variant's model could go with; name one")
        return RetrievalIndex.open(self._store, version)

    async def _is_served(self, beside: Beside) -> bool:
        version = beside.release.model_version
        return version is None or await self._inference.ready(version)


def _words(wanted: VariantRelease) -> str:
    return " with ".join(name for name in (wanted.model, wanted.index) if name is not None)
