"""Has every engine forget deleted users by itself, wherever it stands.

The features service tells the engines that it can reach, and waits for their word. One beside a recommender, behind a
Unix socket of its pod, is none of these. So each engine follows deletions in the database, as it follows releases.

A request that read the history before the deletion may build its states again behind the first word; so a user is
forgotten a second time once no such request can be under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sqlalchemy import Connection, select

from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.storage.tables import user_state

OVERLAP_US = 180_000_000
"""Looked at again each time: commits come late, clocks differ, and a job's chunk may go on for 150 s with histories
that it read at its start (jobs.hard_limit_s)."""
Departed = tuple[str, int]
"""user_key, and when it was deleted in microseconds since 1970 UTC."""
_log = get_logger(__name__)


def deleted_since(connection: Connection, since_us: int) -> list[Departed]:
    """Users, and the visitors that were merged into them: a deletion marks both with its time."""
    query = select(user_state.c.user_key, user_state.c.deleted_at_us).where(user_state.c.deleted_at_us > since_us)
    return [(row.user_key, row.deleted_at_us) for row in connection.execute(query)]


class Forgets(Protocol):
    """The part of the engine that is needed."""

    async def forget(self, user_key: str) -> int: ...


def _now_us() -> int:
    return time.time_ns() // 1000


class Forgetting:
    """Give `run` to a TaskOwner. `read`: `deleted_since` (raises DatabaseUnavailable); `forgot` hears the rows that
    were dropped. Begins now: an engine that starts holds nobody."""

    def __init__(
        self,
        engine: Forgets,
        read: Callable[[int], Awaitable[Sequence[Departed]]],
        forgot: Callable[[int], None],
        *,
        refresh_s: float,
        clock_us: Callable[[], int] = _now_us,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._read = read
        self._forgot = forgot
        self._refresh_s = refresh_s
        self._clock_us = clock_us
        self._sleep = sleep
        self._upto_us = clock_us()
        self._known: dict[str, tuple[int, int]] = {}
        """user_key: when it was deleted, and when it was first forgotten here."""

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                _log.debug("deletions are looked at later", cause=error.detail)
            await self._sleep(self._refresh_s)

    async def look(self) -> None:
        """One round. After an outage it begins where the last one ended. Raises DatabaseUnavailable."""
        now_us = self._clock_us()
        since_us = self._upto_us - OVERLAP_US
        for user_key, at_us in await self._read(since_us):
            if user_key not in self._known or self._known[user_key][0] != at_us:
                await self._forget(user_key)
                self._known[user_key] = (at_us, now_us)
        for user_key in [key for key, (_, first_us) in self._known.items() if first_us <= now_us - OVERLAP_US]:
            await self._forget(user_key)
            del self._known[user_key]
        self._upto_us = now_us

    async def _forget(self, user_key: str) -> None:
        self._forgot(await self._engine.forget(user_key))
