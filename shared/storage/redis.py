"""Redis clients. Every key of SilkRec starts with `silkrec:` and a format version, and has a TTL.

Two clients a process, because a read on the request path may wait 20 ms and a write behind it 250 ms.
"""

from __future__ import annotations

import time
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.errors import ConfigurationError
from shared.observability.resources import PoolUse
from shared.settings.roots import RedisSettings

RedisFailure = (RedisError, OSError, TimeoutError)
"""What a client raises when Redis is away or slow; catch it where a miss is the right answer."""


def connect(url: str, settings: RedisSettings, *, timeout_ms: int) -> Redis:
    """A client whose every call ends within `timeout_ms`, connecting included; no hidden retries. Values stay bytes."""
    timeout_s = timeout_ms / 1000
    try:
        pool = _CountingPool.from_url(
            url,
            max_connections=settings.max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
    except ValueError:
        raise ConfigurationError("redis.url must start with redis://, rediss:// or unix://") from None
    return Redis(connection_pool=pool)


def pool_use(client: Redis) -> PoolUse:
    """Of a client that `connect` made. A wait ends within the client's time-out."""
    pool: Any = client.connection_pool
    return PoolUse(len(pool._in_use_connections), pool.max_connections, pool.waiting, pool.waited_s)


class _CountingPool(BlockingConnectionPool):
    """Knows who waits, as the library does not; a call that finds a connection pays for one comparison."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.waiting, self.waited_s = 0, 0.0

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        if self.can_get_connection():
            return await super().get_connection()  # type: ignore[no-untyped-call]
        began = time.monotonic()
        self.waiting += 1
        try:
            return await super().get_connection()  # type: ignore[no-untyped-call]
        finally:
            self.waiting -= 1
            self.waited_s += time.monotonic() - began
