from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from services.recommender.components.stored import (
    LastGood,
    last_good_key,
    pack_last_good,
    unpack_last_good,
)
from services.recommender.domain import Rung
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Ranked
from shared.observability.logging import get_logger
from shared.storage.redis import RedisFailure

# The best 256 of 500 fill any slate; a user who asks for more pages meanwhile finds the rest in retrieval order.
KEPT = 256
# Scores of a minute ago serve an outage as well as those of now: a busy user costs one write a minute, not one a page.
FRESH_FOR_S = 60
_log = get_logger(__name__)


class Writer(Protocol):
    """`redis.asyncio.Redis`, whose client has a time-out of its own."""

    def set(self, name: str, value: bytes, *, ex: int) -> Awaitable[Any]: ...


class Tasks(Protocol):
    """`shared.observability.tasks.TaskOwner`."""

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> bool: ...


@dataclass(frozen=True, slots=True)
class LastGoodScores:
    """Keeps what the model said for a time when it cannot be asked. A full queue or a dead Redis drops the write."""

    redis: Writer
    tasks: Tasks
    ttl_s: int
    name: str = "last_good"

    def after(self, context: Context, ranked: Ranked) -> None:
        query, batch = context.query, ranked.batch
        if ranked.rung not in (Rung.MODEL, Rung.PARTIAL) or not query.personalized or query.input_list is not None:
            return
        if batch.scores is None or batch.scored is None:
            return
        key = last_good_key(context.snapshot.release_name, query.user_key)
        before = unpack_last_good(context.user.extras.get(key))
        if before is not None and 0 <= query.now_s - before.made_at_s < FRESH_FOR_S:
            return
        best = np.flatnonzero(batch.scored)[:KEPT]
        value = LastGood(batch.item_index[best], batch.scores[best], query.now_s)
        self.tasks.spawn("last good scores", self._write(key, pack_last_good(value)))

    async def _write(self, key: str, value: bytes) -> None:
        try:
            await self.redis.set(key, value, ex=self.ttl_s)
        except RedisFailure as error:
            _log.warning("last good scores were not kept", error=type(error).__name__)
