"""Exports when the newest good backup was made. Who makes none has no series, and is not woken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

from shared.errors import DatabaseUnavailable
from shared.observability.logging import get_logger
from shared.observability.metrics import Metrics
from shared.storage import backup_time
from shared.storage.database import Database

# The alert waits 26 hours; a minute is one read of one row.
EVERY_S = 60.0
_log = get_logger(__name__)


class BackupAge:
    """Give `run` to a TaskOwner."""

    def __init__(
        self, database: Database, metrics: Metrics, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._sleep = sleep
        self._gauge: Gauge | None = None

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                _log.debug("the age of the backup is looked at later", cause=error.detail)
            await self._sleep(EVERY_S)

    async def look(self) -> None:
        """Raises DatabaseUnavailable."""
        at_us: int | None = await self._database.run(self._read)
        if at_us is None:
            return
        if self._gauge is None:
            self._gauge = self._metrics.gauge(
                "backup_last_success_timestamp_seconds", "When the newest good backup was made", combined="livemax"
            )
        self._gauge.set(at_us / 1e6)

    def _read(self) -> int | None:
        with self._database.read() as connection:
            return backup_time.told(connection)
