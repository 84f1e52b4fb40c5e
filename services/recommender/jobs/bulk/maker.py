"""Slates of a list of users: in groups that go through the pipeline side by side, a few groups under way at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from services.recommender.domain import Query, Slate, UserFeatures
from services.recommender.jobs.bulk.queries import UserQueries
from services.recommender.jobs.work import SlateAsk, SlateSpec, UserSlate
from services.recommender.pipeline.context import Snapshot
from services.recommender.routes.queries import QueryBuilder
from services.recommender.serving.state import ServingState, StateHolder
from shared.contracts.manifest import Release
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded
from shared.observability.logging import get_logger

_log = get_logger(__name__)
GROUP = 64
UNDER_WAY = 3
"""Groups: one whose features are read and sources asked, one with the engine, one that is filtered and put in order."""
_ENGINE_STAGES = ("encode", "rank")
_ENGINE_AWAY = frozenset({InferenceUnavailable.code, Overloaded.code, DeadlineExceeded.code, "deadline"})


class ManyUsers(Protocol):
    """`services.features.reader.FeatureReader`, as far as jobs use it."""

    async def users(self, user_keys: Sequence[str], /) -> Sequence[Any]: ...


class Pipeline(Protocol):
    async def run(self, query: Query, /) -> Slate: ...


class BulkSlates:
    """A `SlateMaker`. `pipeline_of` makes one for a group and a snapshot: all slates of a call are of one release.
    `shipped` gives a scene's shipped settings."""

    def __init__(
        self,
        *,
        holder: StateHolder,
        reader: ManyUsers,
        builder: QueryBuilder,
        pipeline_of: Callable[[Snapshot], Pipeline],
        shipped: Callable[[str], Mapping[str, Any]],
        group: int = GROUP,
        under_way: int = UNDER_WAY,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._holder = holder
        self._reader = reader
        self._builder = builder
        self._pipeline_of = pipeline_of
        self._shipped = shipped
        self._group = group
        self._under_way = under_way
        self._clock = clock
        self._now_us = now_us

    @property
    def release(self) -> Release | None:
        return self._holder.current().release

    async def slates(self, spec: SlateSpec, asks: Sequence[SlateAsk]) -> list[UserSlate]:
        """See `SlateMaker`. A call's users all see one release and one time."""
        state = self._holder.current()
        now_us = self._now_us() if spec.now_s is None else spec.now_s * 1_000_000
        queries = UserQueries.of(spec, self._builder, self._shipped(spec.scene), now_us=now_us, begin=self._clock())
        free = asyncio.Semaphore(self._under_way)

        async def group(part: Sequence[SlateAsk]) -> list[UserSlate]:
            async with free:
                return await self._of_group(part, queries, state)

        parts = [asks[start : start + self._group] for start in range(0, len(asks), self._group)]
        tasks = [asyncio.create_task(group(part)) for part in parts]
        try:
            return [slate for made in await asyncio.gather(*tasks) for slate in made]
        finally:  # when one failed, the chunk has failed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _of_group(self, asks: Sequence[SlateAsk], queries: UserQueries, state: ServingState) -> list[UserSlate]:
        pipeline = self._pipeline_of(state)
        views = await self._reader.users([ask.user_key for ask in asks])
        users = [UserFeatures(view.history, view.properties, view.segments) for view in views]
        made = (self._of_user(ask, user, queries, pipeline, state) for ask, user in zip(asks, users, strict=True))
        found = await asyncio.gather(*made, return_exceptions=True)  # none is left running behind the first that fails
        for slate in found:
            if isinstance(slate, BaseException):
                raise slate
        return [slate for slate in found if not isinstance(slate, BaseException)]

    async def _of_user(
        self, ask: SlateAsk, user: UserFeatures, queries: UserQueries, pipeline: Pipeline, state: ServingState
    ) -> UserSlate:
        try:
            slate = await pipeline.run(queries.of_user(ask, user, state.catalogue))
        except Exception as error:  # noqa: BLE001  (one user's trouble is told in its row, the others go on)
            _log.error("a job's slate failed", exc_info=error)
            return _nothing(ask.user_key, f"{type(error).__name__}: {error}"[:300])
        away = [row for row in slate.degraded if row.stage in _ENGINE_STAGES and row.cause in _ENGINE_AWAY]
        if away:
            raise InferenceUnavailable(
                f"the inference service was asked for a job and did not answer: {away[0].stage}, {away[0].cause}; the "
                "chunk is tried again"
            )
        items = slate.items.item_index
        return UserSlate(
            ask.user_key,
            tuple(map(state.catalogue.item_id, items.tolist())),
            items.astype(np.int32, copy=False),
            slate.items.score.astype(np.float32, copy=False),
            tuple(f"{row.stage}:{row.cause}" for row in slate.degraded),
        )


def _nothing(user_key: str, error: str) -> UserSlate:
    return UserSlate(user_key, (), np.empty(0, np.int32), np.empty(0, np.float32), error=error)
