"""Looks after what requests lean on, for /ready and the log: requests themselves notice a dead store by its misses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from services.recommender.serving.releases import ModelReadiness
from services.recommender.serving.state import StateHolder
from shared.observability.logging import get_logger
from shared.storage.redis import RedisFailure

_log = get_logger(__name__)
INTERVAL_S = 2.0
# Never written: a GET costs what a PING does, and is refused by a server that is loading or locked, as a read would.
_PROBE = "silkrec:probe1"


class DependencyWatcher:
    """`run()` for ever in one task; `redis` and `inference` are `ok`, or what is wrong."""

    def __init__(
        self,
        *,
        redis: Redis,
        inference: ModelReadiness,
        holder: StateHolder,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._redis = redis
        self._inference = inference
        self._holder = holder
        self._sleep = sleep
        self.redis = "not asked yet"
        self.inference = "not asked yet"

    async def run(self) -> None:
        while True:
            await self.look()
            await self._sleep(INTERVAL_S)

    async def look(self) -> None:
        self.redis = self._noted("redis", self.redis, await self._ask_redis())
        self.inference = self._noted("inference", self.inference, await self._ask_inference())

    async def _ask_redis(self) -> str:
        try:
            await self._redis.get(_PROBE)
        except RedisFailure as error:
            return f"does not answer ({type(error).__name__})"
        return "ok"

    async def _ask_inference(self) -> str:
        version = self._holder.current().model_version
        if version is None:
            return "not needed: the active release has no model"
        return "ok" if await self._inference.ready(version) else f"is not ready to serve {version}"

    @staticmethod
    def _noted(name: str, before: str, now: str) -> str:
        if now != before:
            _log.info("a dependency changed", dependency=name, state=now)
        return now
