"""One job as a row: accepted, looked at, cancelled; and the one way in which its state changes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, and_, case, func, insert, select, tuple_, update

from services.recommender.jobs.leases import OPEN, PLAN_CHUNK, ChunkKind, ChunkState
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.rules import Rules
from shared.errors import Conflict, NotFound, TooManyRequests
from shared.observability.context import RequestContext
from shared.storage.tables import job_chunks, job_events, jobs

ACTOR_MAX = 128
# Of spec, cursor, packed asks, and kinds and states of chunks. A job of a higher one waits for a newer worker.
FORMAT = 1
NAMING = ("user_ids", "visitor_ids", "lists")
"""Params that name users one by one."""


class JobState(StrEnum):
    PLANNING = "planning"
    RUNNING = "running"
    PUBLISHING = "publishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (JobState.PLANNING.value, JobState.RUNNING.value, JobState.PUBLISHING.value)


@dataclass(frozen=True, slots=True)
class JobRow:
    """`users_*` and `checksum` are final and None until then; `progress.of` counts while it runs."""

    job_id: str
    kind: str
    state: JobState
    spec: Mapping[str, Any]
    actor: str
    cursor: Mapping[str, Any] | None
    planned: bool
    users_done: int | None
    users_failed: int | None
    users_total: int | None
    checksum: str | None
    output: Mapping[str, Any] | None
    reason: str | None
    created_at_us: int
    started_at_us: int | None
    finished_at_us: int | None

    @property
    def active(self) -> bool:
        return self.state.value in ACTIVE


@dataclass(frozen=True, slots=True)
class Running:
    """Jobs of one type that have not ended. `last_us`: when the longest silent one finished a chunk or began."""

    kind: str
    count: int
    last_us: int


@dataclass(frozen=True, slots=True)
class NewJob:
    kind: str
    spec: Mapping[str, Any]
    digest: str
    actor: str
    idempotency_key: str | None = None
    origin: RequestContext | None = None


def create(connection: Connection, new: NewJob, rules: Rules, clock: Clock = database_clock) -> tuple[JobRow, bool]:
    """The job and whether it is new. The same key with the same body is the same job. Raises Conflict for the same key
    with another body, TooManyRequests beyond `rules.max_active`."""
    if new.idempotency_key is not None:
        known = connection.execute(select(jobs).where(jobs.c.idempotency_key == new.idempotency_key)).one_or_none()
        if known is not None:
            if known.spec_digest != new.digest:
                raise Conflict("this Idempotency-Key was used with another body; send a new key, or the same body")
            return _job(known), False
    active = connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.state.in_(ACTIVE))) or 0
    if active >= rules.max_active:
        raise TooManyRequests(
            f"{active} jobs are under way already, the most that jobs.max_active_jobs allows", retry_after_s=30
        )
    now_us, job_id = clock(connection), f"job_{secrets.token_hex(12)}"
    connection.execute(
        insert(jobs).values(
            job_id=job_id, kind=new.kind, state=JobState.PLANNING.value, spec=dict(new.spec), format=FORMAT,
            spec_digest=new.digest,
            idempotency_key=new.idempotency_key, actor=new.actor[:ACTOR_MAX], planned=False, chunks=0,
            created_at_us=now_us, request_id=new.origin and new.origin.request_id,
            traceparent=new.origin and new.origin.traceparent,
        )
    )  # fmt: skip
    add_chunks(connection, job_id, [(PLAN_CHUNK, ChunkKind.PLAN, 0, None)], now_us)
    _write_event(connection, job_id, JobState.PLANNING, now_us, rules)
    return get(connection, job_id), True


def get(connection: Connection, job_id: str, *, lock: bool = False) -> JobRow:
    """Raises NotFound."""
    query = select(jobs).where(jobs.c.job_id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("there is no such job_id; finished jobs are kept for jobs.retention_days")
    return _job(row)


def origin(connection: Connection, job_id: str) -> RequestContext | None:
    """The request that asked for it; None: a schedule did, or an older release took it."""
    row = connection.execute(select(jobs.c.request_id, jobs.c.traceparent).where(jobs.c.job_id == job_id)).one_or_none()
    if row is None or row.request_id is None or row.traceparent is None:
        return None
    return RequestContext(row.request_id, row.traceparent)


def page(
    connection: Connection, *, limit: int, state: JobState | None = None, after: tuple[int, str] | None = None
) -> list[JobRow]:
    """Newest first, from the first one behind `after` (created_at_us, job_id)."""
    key = (jobs.c.created_at_us, jobs.c.job_id)
    query = select(jobs).order_by(key[0].desc(), key[1].desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    if after is not None:
        query = query.where(jobs.c.created_at_us <= after[0], tuple_(*key) < after)
    return [_job(row) for row in connection.execute(query)]


def active_ids(connection: Connection) -> list[str]:
    """Of jobs that this release can read, oldest first; there are at most `max_active`, and a few more while API
    processes accept at once."""
    mine = (jobs.c.state.in_(ACTIVE), jobs.c.format <= FORMAT)
    return list(connection.scalars(select(jobs.c.job_id).where(*mine).order_by(jobs.c.created_at_us)))


def running(connection: Connection) -> list[Running]:
    """By type, of jobs that have not ended."""
    done = job_chunks.c.updated_at_us.label("done")
    chunk = and_(job_chunks.c.job_id == jobs.c.job_id, job_chunks.c.state == "done")
    each = (
        select(jobs.c.kind, func.coalesce(func.max(done), jobs.c.created_at_us).label("last"))
        .select_from(jobs.outerjoin(job_chunks, chunk))
        .where(jobs.c.state.in_(ACTIVE))
        .group_by(jobs.c.job_id, jobs.c.kind, jobs.c.created_at_us)
        .subquery()
    )
    query = select(each.c.kind, func.count(), func.min(each.c.last)).group_by(each.c.kind)
    return [Running(*row) for row in connection.execute(query)]


def can_read(spec: Mapping[str, Any]) -> bool:
    """Was it written by this release or an older one?"""
    written = spec.get("format")
    return isinstance(written, int) and written <= FORMAT


def cancel(connection: Connection, job_id: str, rules: Rules, clock: Clock = database_clock) -> JobRow:
    """At once and for good: whoever computes a chunk can no longer commit it. Cancelling again changes nothing.
    Raises NotFound, Conflict for a job that ended otherwise."""
    job = get(connection, job_id, lock=True)
    if job.state is JobState.CANCELLED:
        return job
    if not job.active:
        raise Conflict(f"the job has {job.state.value} already; only one under way can be cancelled")
    end(connection, job_id, JobState.CANCELLED, clock(connection), rules)
    return get(connection, job_id)


def end(
    connection: Connection, job_id: str, state: JobState, now_us: int, rules: Rules, *, reason: str | None = None,
    output: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """The final state and the final numbers. What is still open is taken from whoever has it, and the names of users
    that the job was given go: one who is deleted later must not stay here until retention. The caller has locked the
    job's row."""
    mine = job_chunks.c.job_id == job_id
    connection.execute(
        update(job_chunks)
        .where(mine, job_chunks.c.state.in_(OPEN))
        .values(state=ChunkState.CANCELLED.value, token=job_chunks.c.token + 1, updated_at_us=now_us)
    )
    connection.execute(update(job_chunks).where(mine, job_chunks.c.asks.is_not(None)).values(asks=None))
    work, lost = job_chunks.c.kind == ChunkKind.WORK.value, job_chunks.c.state == ChunkState.PARKED.value
    counted = select(
        func.coalesce(func.sum(job_chunks.c.users_done), 0),
        func.coalesce(func.sum(job_chunks.c.users_failed + case((lost, job_chunks.c.users), else_=0)), 0),
        func.coalesce(func.sum(job_chunks.c.users), 0),
    )
    done, failed, total = connection.execute(counted.where(mine, work)).one()
    checksums = connection.scalars(select(job_chunks.c.checksum).where(mine, job_chunks.c.checksum.is_not(None)))
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id)
        .values(
            state=state.value, reason=reason, output=None if output is None else dict(output), finished_at_us=now_us,
            users_done=int(done), users_failed=int(failed), users_total=int(total), checksum=add_up(list(checksums)),
            spec=_nameless(get(connection, job_id).spec),
        )
    )  # fmt: skip
    _write_event(connection, job_id, state, now_us, rules)


def _nameless(spec: Mapping[str, Any]) -> dict[str, Any]:
    if not can_read(spec):
        return {"format": spec.get("format")}  # where else a newer release names users is not known
    params = {name: value for name, value in spec.get("params", {}).items() if name not in NAMING}
    return {**spec, "params": params}


def move(connection: Connection, job_id: str, state: JobState, now_us: int, rules: Rules, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(state=state.value, **values))
    _write_event(connection, job_id, state, now_us, rules)


def add_chunks(
    connection: Connection, job_id: str, chunks: Sequence[tuple[int, ChunkKind, int, bytes | None]], now_us: int,
    *, attempts: int = 0,
) -> None:  # fmt: skip
    """Rows of (number, kind, users, asks), waiting and due at once."""
    if not chunks:
        return
    rows = [
        {
            "job_id": job_id, "chunk": number, "kind": kind.value, "state": ChunkState.WAITING.value,
            "due_at_us": now_us, "token": 0, "attempts": attempts, "users": users, "asks": asks,
            "users_done": 0, "users_failed": 0, "updated_at_us": now_us,
        }
        for number, kind, users, asks in chunks
    ]  # fmt: skip
    connection.execute(insert(job_chunks), rows)


def add_refused(connection: Connection, job_id: str, chunk: int, refused: Sequence[str], now_us: int) -> None:
    """Rows of a file that name nobody: a chunk of failures, done as it is written, so that they are counted once."""
    connection.execute(
        insert(job_chunks).values(
            job_id=job_id, chunk=chunk, kind=ChunkKind.WORK.value, state=ChunkState.DONE.value, due_at_us=now_us,
            token=0, attempts=0, users=len(refused), users_done=0, users_failed=len(refused),
            failures=[[row, "the row names no user, or no items to rank"] for row in refused], updated_at_us=now_us,
        )
    )  # fmt: skip


def add_up(checksums: Sequence[str]) -> str:
    """Sums of 256 bits: the same whatever chunks the users stood in."""
    return f"{sum(int(one, 16) for one in checksums) % (1 << 256):064x}"


def _write_event(connection: Connection, job_id: str, state: JobState, now_us: int, rules: Rules) -> None:
    if not rules.notify:
        return
    payload = {"type": "job.state", "job_id": job_id, "state": state.value, "at_us": now_us}
    connection.execute(
        insert(job_events).values(
            job_id=job_id, at_us=now_us, state=state.value, payload=payload, outcome="waiting", due_at_us=now_us,
            attempts=0,
        )
    )  # fmt: skip


def _job(row: Row[Any]) -> JobRow:
    return JobRow(
        job_id=row.job_id, kind=row.kind, state=JobState(row.state), spec=row.spec, actor=row.actor, cursor=row.cursor,
        planned=bool(row.planned), users_done=row.users_done, users_failed=row.users_failed,
        users_total=row.users_total, checksum=row.checksum, output=row.output, reason=row.reason,
        created_at_us=row.created_at_us, started_at_us=row.started_at_us, finished_at_us=row.finished_at_us,
    )  # fmt: skip
