from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.recommender.jobs.desk import JobDesk
from services.recommender.jobs.metrics import JobMetrics
from services.recommender.jobs.schedules import Schedule, Scheduler
from shared.errors import ConfigurationError
from shared.observability.metrics import Metrics
from shared.settings.roots import DatabaseSettings, JobsSettings, ScheduleSettings, Settings
from shared.storage import migrate
from shared.storage.database import Database

JOB = {"type": "slate", "params": {"segment": "*"}}
NIGHTLY = ScheduleSettings(name="nightly", crontab="30 3 * * *", job=JOB)


def at(hour: int, minute: int, second: int = 0, day: int = 5) -> datetime:
    return datetime(2026, 1, day, hour, minute, second, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(f"sqlite:///{tmp_path / 'jobs.db'}", DatabaseSettings())
    migrate.upgrade(found)
    yield found
    found.close()


def scheduler(database: Database, now: list[datetime]) -> Scheduler:
    desk = JobDesk(database, Settings(jobs=JobsSettings(schedules=(NIGHTLY,))))

    def told() -> float:
        return now[0].timestamp()

    return Scheduler(desk, JobMetrics(Metrics("jobs")), now=told)


def test_the_newest_minute_that_the_line_names_is_due_within_the_hour_behind_it() -> None:
    schedule = Schedule.of(NIGHTLY, Settings())
    assert schedule.last_due(at(3, 29, 59)) is None
    assert schedule.last_due(at(3, 30, 1)) == at(3, 30)
    assert schedule.last_due(at(4, 30)) == at(3, 30)
    assert schedule.last_due(at(4, 31)) is None


def test_week_days_count_from_sunday_as_cron_counts_them() -> None:
    monday = Schedule.of(ScheduleSettings(name="weekly", crontab="0 9 * * 1", job=JOB), Settings())
    assert monday.last_due(at(9, 5, day=5)) == at(9, 0, day=5)  # 2026-01-05 is a Monday
    assert monday.last_due(at(9, 5, day=6)) is None


def test_however_many_processes_fire_a_schedule_it_is_one_job(database: Database) -> None:
    now = [at(3, 30, 2)]
    first, second = scheduler(database, now), scheduler(database, now)
    assert asyncio.run(first.look()) == 1
    assert asyncio.run(second.look()) == 0
    assert asyncio.run(scheduler(database, [at(3, 45)]).look()) == 0  # started again after a crash
    now[0] = at(3, 30, 2, day=6)
    assert asyncio.run(first.look()) == 1
    assert asyncio.run(first.look()) == 0
    jobs = first._desk.page(limit=10, state=None, after=None)
    assert [one.job.actor for one in jobs] == ["schedule nightly"] * 2


@pytest.mark.parametrize(
    ("crontab", "job"),
    [("every night", JOB), ("0 25 * * *", JOB), ("0 3 * * *", {"type": "slate", "params": {"scene": "no such"}})],
)
def test_a_schedule_that_cannot_be_is_refused_at_the_start_by_its_name(
    crontab: str, job: dict[str, object], database: Database
) -> None:
    settings = ScheduleSettings(name="broken", crontab=crontab, job=job)
    with pytest.raises(ConfigurationError, match=r"schedules broken"):
        Schedule.of(settings, Settings())
