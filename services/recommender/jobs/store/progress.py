"""How far a job is: counted from its chunks while it runs, read from its row once it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, select

from services.recommender.jobs.leases import ChunkKind, ChunkState
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.jobs import JobRow
from shared.storage.tables import job_chunks

RATE_WINDOW_S = 60.0
SHOWN_PARKED = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """Users. `total` grows until everything is planned; `failed`: those who got no slate, parked ones included.
    `rate`: users a second over the last minute, or over the whole job once it is over. `eta_s`: None where unknown."""

    done: int
    total: int
    failed: int
    rate: float | None
    eta_s: float | None


def of(connection: Connection, found: Sequence[JobRow], clock: Clock = database_clock) -> dict[str, Progress]:
    """By job_id, in one statement for all that run."""
    running = [job.job_id for job in found if job.active]
    counted: Mapping[str, Any] = {}
    now_us = 0
    if running:
        now_us = clock(connection)
        table = job_chunks.c
        recent = table.updated_at_us >= now_us - round(RATE_WINDOW_S * 1e6)
        made = (table.state == ChunkState.DONE.value) & recent
        lost = table.state == ChunkState.PARKED.value
        columns = (
            func.sum(table.users_done).label("done"),
            func.sum(table.users_failed + case((lost, table.users), else_=0)).label("failed"),
            func.sum(table.users).label("total"),
            func.sum(case((made, table.users), else_=0)).label("recent"),
        )
        query = select(table.job_id, *columns).where(table.job_id.in_(running), table.kind == ChunkKind.WORK.value)
        counted = {row.job_id: row for row in connection.execute(query.group_by(table.job_id))}
    return {job.job_id: _progress(job, counted.get(job.job_id), now_us) for job in found}


def parked(connection: Connection, job_id: str) -> list[tuple[int, int, str]]:
    """The newest chunks that were given up: (chunk, users, reason)."""
    table = job_chunks.c
    query = select(table.chunk, table.users, table.reason).where(
        table.job_id == job_id, table.state == ChunkState.PARKED.value
    )
    rows = connection.execute(query.order_by(table.updated_at_us.desc()).limit(SHOWN_PARKED))
    return [(row.chunk, row.users, row.reason or "") for row in rows]


def failures(connection: Connection, job_id: str, limit: int) -> list[tuple[str, str]]:
    """Users without a slate and why, of the first chunks that have any."""
    table = job_chunks.c
    query = select(table.failures).where(table.job_id == job_id, table.users_failed > 0).order_by(table.chunk)
    found = [(key, why) for listed in connection.scalars(query.limit(limit)) for key, why in listed or ()]
    return found[:limit]


def _progress(job: JobRow, counted: Any, now_us: int) -> Progress:
    if not job.active:
        done, failed, total = job.users_done or 0, job.users_failed or 0, job.users_total or 0
        took_s = ((job.finished_at_us or 0) - (job.started_at_us or job.created_at_us)) / 1e6
        return Progress(done, total, failed, done / took_s if took_s > 0 else None, None)
    if counted is None:
        return Progress(0, 0, 0, None, None)
    done, failed, total = int(counted.done), int(counted.failed), int(counted.total)
    ran_s = (now_us - (job.started_at_us or now_us)) / 1e6
    rate = int(counted.recent) / min(RATE_WINDOW_S, ran_s) if ran_s > 0 and counted.recent else None
    left = total - done - failed
    return Progress(done, total, failed, rate, left / rate if rate and job.planned else None)
