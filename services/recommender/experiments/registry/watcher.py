"""Follows experiments and shipped settings for requests: two small reads a look, all of it only after a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from services.recommender.experiments.definitions import Status
from services.recommender.experiments.live import Live, LiveExperiment
from services.recommender.experiments.registry import shipping
from services.recommender.experiments.registry.document import parse
from services.recommender.experiments.registry.sql import EXPERIMENTS
from shared.errors import DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.schema import Schema
from shared.storage import deployments
from shared.storage.database import Database
from shared.storage.tables import counters, experiments

_log = get_logger(__name__)
REFRESH_S = 1.0
Version = tuple[int, int]
"""(counters.experiments, deployments.version)."""


class ExperimentWatcher:
    """`run()` for ever in one task; `current()` from any request. Without a database the last picture stays: a variant
    must not change because a server restarts. Drafts that force somebody are in it too, for trying them out."""

    def __init__(
        self,
        database: Database,
        schema: Schema,
        *,
        refresh_s: float = REFRESH_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._schema = schema
        self._refresh_s = min(refresh_s, REFRESH_S)
        self._sleep = sleep
        self._live = Live()
        self._version: Version | None = None
        self.status = "not read yet"

    def current(self) -> Live:
        return self._live

    async def run(self) -> None:
        while True:
            await self.look()
            await self._sleep(self._refresh_s)

    async def look(self) -> bool:
        """True when something changed."""
        try:
            found = await self._database.run(self._read)
        except DatabaseUnavailable as error:
            self.status = error.detail
            return False
        if found is None:
            return False
        self._version, self._live, self.status = found
        return True

    def _read(self) -> tuple[Version, Live, str] | None:
        """None: nothing changed."""
        with self._database.read() as connection:
            deployment = deployments.active(connection)
            counter = connection.scalar(select(counters.c.value).where(counters.c.name == EXPERIMENTS))
            version = (int(counter or 0), 0 if deployment is None else deployment.version)
            if version == self._version:
                return None
            running, status = self._running(connection)
        live = Live.of(running, shipping.shipped_in(deployment), self._schema.scenes)
        return version, live, status

    def _running(self, connection: Connection) -> tuple[list[LiveExperiment], str]:
        table = experiments.c
        query = select(experiments).where(or_(table.status == Status.RUNNING.value, table.status == Status.DRAFT.value))
        found, refused = [], []
        for row in connection.execute(query.order_by(table.created_at_us, table.experiment)):
            one = self._compiled(row)
            if one is None:
                refused.append(row.experiment)
            elif one.definition.status is Status.RUNNING or one.definition.forced:
                found.append(one)
        return found, f"left out: {', '.join(refused)}" if refused else "ok"

    def _compiled(self, row: Row[Any]) -> LiveExperiment | None:
        """None for what another release wrote, or a field that has gone: one experiment less, not no slate."""
        try:
            parsed = parse(row.document, status=Status(row.status))
            return LiveExperiment.of(replace(parsed, started_at_us=row.started_at_us), self._schema)
        except (SilkrecError, ValueError) as error:
            _log.error("an experiment cannot be served", experiment=row.experiment, reason=str(error))
            return None
