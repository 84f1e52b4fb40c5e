"""Jobs that start by themselves. The idempotency key of a firing is schedule and minute: however many processes fire
it, and however often, it is one job.

Celery's crontab reads the line; its beat is not used: it keeps what it fired in a file of one machine, and two beats
fire twice (infra/decisions/0015-durable-jobs.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import ParseException, crontab

from services.recommender.jobs.desk import JobDesk
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.spec import JobBody, check, read_body
from shared.errors import ConfigurationError, DatabaseUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.settings.roots import ScheduleSettings, Settings

# A suite that was down over the minute of a schedule fires it when it is back, if it is no later than this.
CATCH_UP_MINUTES = 60
LOOK_S = 5.0
_log = get_logger(__name__)


@dataclass(frozen=True)
class Schedule:
    name: str
    cron: crontab
    body: JobBody

    @classmethod
    def of(cls, settings: ScheduleSettings, everything: Settings) -> Schedule:
        """Raises ConfigurationError that names the schedule."""
        try:
            cron = crontab.from_string(settings.crontab)
        except (ParseException, ValueError) as error:
            raise ConfigurationError(f"jobs.schedules {settings.name}: crontab {settings.crontab!a}: {error}") from None
        try:
            body = read_body(settings.job)
            check(body, everything.data, files=everything.jobs.input_dir is not None)
        except SilkrecError as error:
            raise ConfigurationError(f"jobs.schedules {settings.name}: job: {error.detail}") from None
        return cls(settings.name, cron, body)

    def last_due(self, now: datetime, look_back_minutes: int = CATCH_UP_MINUTES) -> datetime | None:
        """The newest minute up to `now` that the line names; None: none within the look back. UTC."""
        minute = now.replace(second=0, microsecond=0)
        for _ in range(look_back_minutes + 1):
            if self._names(minute):
                return minute
            minute -= timedelta(minutes=1)
        return None

    def key_of(self, minute: datetime) -> str:
        return f"schedule:{self.name}:{minute:%Y-%m-%dT%H:%MZ}"

    def _names(self, minute: datetime) -> bool:
        cron = self.cron
        return (
            minute.minute in cron.minute
            and minute.hour in cron.hour
            and minute.day in cron.day_of_month
            and minute.month in cron.month_of_year
            and minute.isoweekday() % 7 in cron.day_of_week
        )


class Scheduler:
    """Give `run` to a TaskOwner. `now`: seconds since 1970 UTC."""

    def __init__(
        self,
        desk: JobDesk,
        metrics: JobMetrics,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises ConfigurationError."""
        self._desk = desk
        self._metrics = metrics
        self._now = now
        self._sleep = sleep
        self._schedules = [Schedule.of(one, desk.settings) for one in desk.settings.jobs.schedules]
        self._fired: dict[str, datetime] = {}
        self.refused: Mapping[str, str] = {}

    async def run(self) -> None:
        while True:
            await self.look()
            await self._sleep(LOOK_S)

    async def look(self) -> int:
        """Fires what is due; how many jobs are new."""
        now, started = datetime.fromtimestamp(self._now(), UTC), 0
        for schedule in self._schedules:
            minute = schedule.last_due(now)
            if minute is None or self._fired.get(schedule.name) == minute:
                continue
            try:
                started += await self._fire(schedule, minute)
            except DatabaseUnavailable as error:
                _log.warning("a schedule waits for the database", schedule=schedule.name, cause=error.detail)
                continue
            except SilkrecError as error:
                self.refused = {**self.refused, schedule.name: error.detail}
                _log.error("a schedule started no job", schedule=schedule.name, cause=error.detail)
            self._fired[schedule.name] = minute
        return started

    async def _fire(self, schedule: Schedule, minute: datetime) -> int:
        seen, is_new = await self._desk.database.run(self._submit, schedule, minute)
        if is_new:
            self._metrics.scheduled.labels(schedule.name).inc()
            _log.info("a schedule started a job", schedule=schedule.name, job_id=seen.job.job_id)
        self.refused = {name: why for name, why in self.refused.items() if name != schedule.name}
        return int(is_new)

    def _submit(self, schedule: Schedule, minute: datetime) -> tuple[Any, bool]:
        return self._desk.submit(
            schedule.body, actor=f"schedule {schedule.name}", idempotency_key=schedule.key_of(minute)
        )
