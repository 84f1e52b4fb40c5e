"""The one place that names concrete classes: opens stores, starts what runs behind the routes, closes in reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from services.features.backup_age import BackupAge
from services.features.feedback.service import FeedbackService
from services.features.ingest.group import EventIngest
from services.features.ingest.marks import MarkCleaner
from services.features.ingest.publisher import HistoryPublisher
from services.features.ingest.validation import EventValidator
from services.features.items.wiring import ItemsPart
from services.features.metrics import IngestMetrics, SweepMetrics
from services.features.online.store import HistoryStore
from services.features.online.sweeper import Sweeper
from services.features.purge import Purge
from services.features.users.wiring import UsersPart
from shared.actions import ActionTable
from shared.observability.metrics import Metrics
from shared.observability.resources import ResourceMetrics
from shared.observability.tasks import TaskOwner
from shared.settings.load import Loaded
from shared.storage.database import Database
from shared.storage.keys import KeyCache
from shared.storage.redis import connect, pool_use
from shared.web.health import Readiness

DRAIN_S = 1.0


class Board:
    """What /ready and /health say. Writing needs the database alone; that it is away is told by each 503."""

    def __init__(self) -> None:
        self.tasks: TaskOwner | None = None
        self.sweeper: Sweeper | None = None

    def ready(self) -> Readiness:
        if self.tasks is None or self.sweeper is None:
            return Readiness(False, {"service": "is starting"})
        told = {"database": self.sweeper.database, "redis": self.sweeper.redis}
        told |= {f"task {name}": "given up; restart the process" for name in sorted(self.tasks.dead)}
        return Readiness(True, told)

    def alive(self) -> bool:
        return self.tasks is None or not self.tasks.dead


@contextlib.asynccontextmanager
async def opened(loaded: Loaded, metrics: Metrics, board: Board) -> AsyncIterator[Mapping[str, Any]]:
    """Yields what becomes `request.state`. No store needs to be up. Raises ConfigurationError for what cannot work."""
    settings = loaded.settings
    actions = ActionTable.from_schema(settings.data)
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.database_url(), settings.database)
        stack.push_async_callback(asyncio.to_thread, database.close)
        redis = connect(settings.redis_url(), settings.redis, timeout_ms=settings.redis.write_timeout_ms)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        histories = HistoryStore(redis, settings.features.history)
        cleaner = MarkCleaner(database)
        publisher = HistoryPublisher(
            database,
            histories,
            cleaner,
            settings.features.history,
            actions,
            timeout_s=settings.redis.write_timeout_ms / 1000,
        )
        ingest = EventIngest(database, publisher, settings.features, actions, IngestMetrics(metrics))
        sweeper = Sweeper(
            database, redis, publisher, SweepMetrics(metrics), interval_s=settings.features.sweep_interval_s
        )
        users = UsersPart.build(settings, database=database, redis_write=redis, histories=histories, actions=actions)
        stack.push_async_callback(users.close)
        items = ItemsPart.build(settings, database=database)
        tasks = TaskOwner(metrics=metrics)
        stack.push_async_callback(tasks.close, drain_s=DRAIN_S)
        keys = KeyCache(database)
        await keys.start(tasks)
        board.tasks, board.sweeper = tasks, sweeper
        tasks.start("event writer", ingest.run)
        tasks.start("dirty marks", cleaner.run)
        tasks.start("sweeper", sweeper.run)
        users.start(tasks)
        Purge(database, settings.features, metrics).start(tasks)
        tasks.start("backup age", BackupAge(database, metrics).run)
        pools = {"database": database.use, "redis_write": lambda: pool_use(redis)}
        tasks.start("resources", ResourceMetrics(metrics, state=settings.state, pools=pools).run)
        yield {
            "settings": settings,
            "loaded": loaded,
            "database": database,
            "redis_write": redis,
            "keys": keys,
            "metrics": metrics,
            "actions": actions,
            "ingest": ingest,
            "validator": EventValidator(actions, future_tolerance_s=settings.features.future_tolerance_s),
            "feedback": FeedbackService(database, publisher, actions),
            **users.state(),
            **items.state(),
        }
