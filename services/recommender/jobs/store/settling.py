"""When a job is over: asked after each chunk, and by the sweeper: who committed last may have died behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from services.recommender.jobs.leases import OPEN, PUBLISH_CHUNK, ChunkKind, ChunkState
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store.chunks import Lease, close
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.jobs import JobRow, JobState
from services.recommender.jobs.store.rules import Rules
from shared.storage.tables import job_chunks


def settle(
    connection: Connection,
    job_id: str,
    rules: Rules,
    *,
    publishes: Callable[[JobRow], bool],
    clock: Clock = database_clock,
) -> JobState:
    """Moves the job on as far as its chunks allow. `publishes`: whether its output needs a last step once every chunk
    is done; asked then only, so that a job whose spec cannot be read can still fail. Raises NotFound, what it raises.

    Its row is locked, so of two who settle one sees the other's work."""
    job = job_rows.get(connection, job_id, lock=True)
    if not job.active:
        return job.state
    now_us = clock(connection)
    parked, reason = _parked(connection, job_id)
    if parked >= rules.max_parked or _is_parked(connection, job_id, (ChunkKind.PLAN, ChunkKind.PUBLISH)):
        return _failed(connection, job_id, now_us, rules, f"{parked} chunks are parked; the last: {reason}")
    if not job.planned or _open_work(connection, job_id):
        return _running(connection, job, now_us, rules)
    if parked:
        return _failed(connection, job_id, now_us, rules, f"{parked} chunks are parked; the last: {reason}")
    if not publishes(job):
        job_rows.end(connection, job_id, JobState.SUCCEEDED, now_us, rules)
        return JobState.SUCCEEDED
    if job.state is not JobState.PUBLISHING:
        job_rows.add_chunks(connection, job_id, [(PUBLISH_CHUNK, ChunkKind.PUBLISH, 0, None)], now_us)
        job_rows.move(connection, job_id, JobState.PUBLISHING, now_us, rules)
    return JobState.PUBLISHING


def published(
    connection: Connection, lease: Lease, output: Mapping[str, Any], rules: Rules, clock: Clock = database_clock
) -> None:
    """The publish chunk is done, and with it the job. Raises LeaseLost."""
    job_rows.get(connection, lease.job_id, lock=True)
    close(connection, lease, clock)
    job_rows.end(connection, lease.job_id, JobState.SUCCEEDED, clock(connection), rules, output=output)


def parts(connection: Connection, job_id: str) -> list[Mapping[str, Any]]:
    """`output` of the chunks that are done, by chunk."""
    table = job_chunks.c
    query = select(table.output).where(
        table.job_id == job_id, table.kind == ChunkKind.WORK.value, table.state == "done"
    )
    return [output for output in connection.scalars(query.order_by(table.chunk)) if output is not None]


def _running(connection: Connection, job: JobRow, now_us: int, rules: Rules) -> JobState:
    if job.state is JobState.PLANNING and job.planned:
        job_rows.move(connection, job.job_id, JobState.RUNNING, now_us, rules)
        return JobState.RUNNING
    return job.state


def _failed(connection: Connection, job_id: str, now_us: int, rules: Rules, reason: str) -> JobState:
    job_rows.end(connection, job_id, JobState.FAILED, now_us, rules, reason=reason[:1000])
    return JobState.FAILED


def _parked(connection: Connection, job_id: str) -> tuple[int, str | None]:
    table = job_chunks.c
    mine = (table.job_id == job_id, table.state == ChunkState.PARKED.value)
    count = int(connection.scalar(select(func.count()).where(*mine)) or 0)
    newest = select(table.reason).where(*mine).order_by(table.updated_at_us.desc()).limit(1)
    return count, connection.scalar(newest) if count else None


def _is_parked(connection: Connection, job_id: str, kinds: tuple[ChunkKind, ...]) -> bool:
    table = job_chunks.c
    mine = (
        table.job_id == job_id,
        table.state == ChunkState.PARKED.value,
        table.kind.in_([kind.value for kind in kinds]),
    )
    return connection.scalar(select(table.chunk).where(*mine).limit(1)) is not None


def _open_work(connection: Connection, job_id: str) -> bool:
    table = job_chunks.c
    open_ = (table.job_id == job_id, table.state.in_(OPEN), table.kind == ChunkKind.WORK.value)
    return connection.scalar(select(table.chunk).where(*open_).limit(1)) is not None
