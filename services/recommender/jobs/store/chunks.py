"""Leases of chunks: taken, renewed, given back, ended. Every write names the fencing token of its lease."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from services.recommender.jobs import asks as packing
from services.recommender.jobs.leases import (
    DEPENDENCY_WAIT_S,
    OPEN,
    REASON_MAX,
    ChunkKind,
    ChunkState,
    LeaseLost,
    after_failure,
)
from services.recommender.jobs.store.clock import Clock, database_clock
from services.recommender.jobs.store.jobs import ACTIVE, FORMAT, active_ids, add_chunks
from services.recommender.jobs.store.rules import Rules
from shared.storage.tables import batch_slates, job_chunks, jobs

# Of one job, looked at by a worker that wants a chunk: another may take the first ones meanwhile.
_CANDIDATES = 8
_MEASURED_CHUNKS = 8
_NO_WORD = "its worker ended without a word: killed, out of memory, or cut off from the database"


@dataclass(frozen=True, slots=True)
class Lease:
    """`attempts` counts this one. `asks`: the packed users of a work chunk. `taken_over`: the lease before ran out."""

    job_id: str
    chunk: int
    kind: ChunkKind
    token: int
    attempts: int
    users: int
    asks: bytes | None
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a work chunk came to; `rows` are those of batch_slates without job and chunk."""

    rows: Sequence[Mapping[str, Any]]
    users_done: int
    failures: Sequence[tuple[str, str]]
    checksum: str
    seconds: float
    output: Mapping[str, Any] | None = None
    note: str | None = None


def claim(
    connection: Connection, worker: str, rules: Rules, clock: Clock = database_clock,
    *, parked: Callable[[ChunkKind], None] = lambda _kind: None,
) -> Lease | None:  # fmt: skip
    """A lease on a chunk that is due, of a random job, so that a long job holds nobody up. None: nothing is due.

    A leased chunk is due when its lease ran out. What failed too often is parked on the way, and `parked` is told; what
    is too large for the target, or failed twice, is made two."""
    now_us = clock(connection)
    for job_id in random.sample(found := active_ids(connection), len(found)):
        for row in _due(connection, job_id, now_us):
            if row.attempts >= rules.max_attempts:
                _park(connection, row, row.reason or _NO_WORD, now_us)
                parked(ChunkKind(row.kind))
                continue
            if _take(connection, row, worker, now_us, rules):
                return _lease(connection, row, now_us, rules)
    return None


def renew(connection: Connection, lease: Lease, rules: Rules, clock: Clock = database_clock) -> None:
    """Raises LeaseLost, which a worker takes as: stop."""
    now_us = clock(connection)
    _write(connection, lease, {"due_at_us": now_us + rules.lease_us, "updated_at_us": now_us})


def release(
    connection: Connection, lease: Lease, reason: str | None, clock: Clock = database_clock,
    *, wait_s: float = DEPENDENCY_WAIT_S,
) -> None:  # fmt: skip
    """Given back without blame: a dependency is away, or a planner has done its share. Raises LeaseLost."""
    now_us = clock(connection)
    values = {
        "state": ChunkState.WAITING.value, "due_at_us": now_us + round(wait_s * 1e6), "attempts": lease.attempts - 1,
        "reason": _cut(reason), "worker": None, "updated_at_us": now_us,
    }  # fmt: skip
    _write(connection, lease, values)


def fail(connection: Connection, lease: Lease, reason: str, rules: Rules, clock: Clock = database_clock) -> ChunkState:
    """Counted: it waits and is tried again, or is parked. Raises LeaseLost."""
    now_us = clock(connection)
    verdict = after_failure(lease.attempts, rules.max_attempts)
    values = {
        "state": verdict.state.value, "due_at_us": now_us + round(verdict.wait_s * 1e6), "reason": _cut(reason),
        "worker": None, "updated_at_us": now_us,
    }  # fmt: skip
    _write(connection, lease, values)
    return verdict.state


def finish(connection: Connection, lease: Lease, done: Done, clock: Clock = database_clock) -> None:
    """Chunk and output rows in one transaction. A user who has a row of this job already breaks the primary key: twice
    is impossible. Raises LeaseLost."""
    now_us = clock(connection)
    values = {
        "state": ChunkState.DONE.value, "due_at_us": now_us, "asks": None, "users_done": done.users_done,
        "users_failed": len(done.failures), "failures": [list(one) for one in done.failures] or None,
        "reason": _cut(done.note), "checksum": done.checksum, "output": done.output, "seconds": done.seconds,
        "updated_at_us": now_us,
    }  # fmt: skip
    _write(connection, lease, values)
    if done.rows:
        key = {"job_id": lease.job_id, "chunk": lease.chunk}
        connection.execute(insert(batch_slates), [{**row, **key} for row in done.rows])


def close(connection: Connection, lease: Lease, clock: Clock = database_clock) -> None:
    """A plan or publish chunk is done. Raises LeaseLost."""
    now_us = clock(connection)
    _write(connection, lease, {"state": ChunkState.DONE.value, "due_at_us": now_us, "updated_at_us": now_us})


def expire_gone(
    connection: Connection, job_ids: Sequence[str], gone: Callable[[str], bool], clock: Clock = database_clock
) -> int:
    """Ends the leases of workers that `gone` knows to be dead, instead of waiting for them to run out; how many."""
    table, ended = job_chunks.c, 0
    leased = select(table.job_id, table.chunk, table.token, table.worker).where(
        table.job_id.in_(job_ids), table.state == ChunkState.LEASED.value, table.due_at_us > clock(connection)
    )
    for row in connection.execute(leased).all():
        if row.worker is not None and gone(row.worker):
            mine = (table.job_id == row.job_id, table.chunk == row.chunk, table.token == row.token)
            held = table.state == ChunkState.LEASED.value
            changed = update(job_chunks).where(*mine, held).values(due_at_us=clock(connection))
            ended += connection.execute(changed).rowcount
    return ended


def holds_lease(connection: Connection, job_ids: Sequence[str], host: str) -> bool:
    """Has a process of this host a chunk?"""
    table = job_chunks.c
    mine = (table.job_id.in_(job_ids), table.state == ChunkState.LEASED.value, table.worker.startswith(f"{host}:"))
    return connection.scalar(select(table.chunk).where(*mine).limit(1)) is not None


def due_count(connection: Connection, most: int, clock: Clock = database_clock) -> int:
    """How many chunks could be leased now, counted up to `most`."""
    due = (
        select(job_chunks.c.chunk)
        .select_from(jobs.join(job_chunks, job_chunks.c.job_id == jobs.c.job_id))
        .where(jobs.c.state.in_(ACTIVE), jobs.c.format <= FORMAT)
        .where(job_chunks.c.state.in_(OPEN), job_chunks.c.due_at_us <= clock(connection))
        .limit(most)
    )
    return int(connection.scalar(select(func.count()).select_from(due.subquery())) or 0)


def users_per_s(connection: Connection, job_id: str | None) -> float | None:
    """Of one worker, over the newest chunks that were done, of this job or of any. None: none was."""
    table = job_chunks.c
    newest = select(table.users, table.seconds).where(table.kind == ChunkKind.WORK.value, table.state == "done")
    newest = newest.where(table.seconds.is_not(None))  # rows of a file that were refused took none
    if job_id is not None:
        newest = newest.where(table.job_id == job_id).order_by(table.due_at_us.desc())
    else:
        newest = newest.order_by(table.updated_at_us.desc())
    rows = connection.execute(newest.limit(_MEASURED_CHUNKS)).all()
    seconds = sum(row.seconds or 0.0 for row in rows)
    return sum(row.users for row in rows) / seconds if seconds > 0 else None


def _due(connection: Connection, job_id: str, now_us: int) -> list[Row[*tuple[Any, ...]]]:
    """Those of dead workers first. A state a statement: each is a walk along the index, where both together would sort
    the thousands of chunks that wait."""
    table = job_chunks.c
    columns = (
        table.job_id, table.chunk, table.kind, table.state, table.token, table.attempts, table.users, table.reason,
    )  # fmt: skip
    found: list[Row[*tuple[Any, ...]]] = []
    for state in (ChunkState.LEASED, ChunkState.WAITING):
        mine = (table.job_id == job_id, table.state == state.value, table.due_at_us <= now_us)
        query = select(*columns).where(*mine).order_by(table.due_at_us, table.chunk).limit(_CANDIDATES)
        found += connection.execute(query).all()
    return found


def _take(connection: Connection, row: Row[*tuple[Any, ...]], worker: str, now_us: int, rules: Rules) -> bool:
    """The token says whether it is still the row that was seen; of two who try, one raises it."""
    values = {
        "state": ChunkState.LEASED.value, "due_at_us": now_us + rules.lease_us, "token": row.token + 1,
        "attempts": row.attempts + 1, "worker": worker[:128], "updated_at_us": now_us,
    }  # fmt: skip
    if row.state == ChunkState.LEASED.value:
        values["reason"] = _NO_WORD
    seen = (job_chunks.c.token == row.token, job_chunks.c.state == row.state)
    changed = update(job_chunks).where(job_chunks.c.job_id == row.job_id, job_chunks.c.chunk == row.chunk, *seen)
    return connection.execute(changed.values(**values)).rowcount == 1


def _lease(connection: Connection, row: Row[*tuple[Any, ...]], now_us: int, rules: Rules) -> Lease:
    table = job_chunks.c
    here = (table.job_id == row.job_id, table.chunk == row.chunk)
    asks = connection.scalar(select(table.asks).where(*here))
    lease = Lease(
        row.job_id, row.chunk, ChunkKind(row.kind), row.token + 1, row.attempts + 1, row.users, asks,
        taken_over=row.state == ChunkState.LEASED.value,
    )  # fmt: skip
    connection.execute(
        update(jobs).where(jobs.c.job_id == row.job_id, jobs.c.started_at_us.is_(None)).values(started_at_us=now_us)
    )
    if lease.kind is not ChunkKind.WORK or asks is None:
        return lease
    measured = users_per_s(connection, row.job_id)
    keep = rules.sizing.keep(row.users, row.attempts, measured, _failing(connection, row.job_id))
    return lease if keep >= row.users else _split(connection, lease, keep, now_us)


def _split(connection: Connection, lease: Lease, keep: int, now_us: int) -> Lease:
    """The first `keep` users stay; the others are a new chunk that starts with one attempt behind it, as both do."""
    users = packing.unpack(lease.asks or b"")
    mine, other = packing.pack(users[:keep]), packing.pack(users[keep:])
    before = min(1, lease.attempts - 1)
    number = next_number(connection, lease.job_id)
    add_chunks(connection, lease.job_id, [(number, ChunkKind.WORK, len(users) - keep, other)], now_us, attempts=before)
    values = {"users": keep, "asks": mine, "attempts": before + 1}
    _write(connection, lease, values)
    return replace(lease, attempts=before + 1, users=keep, asks=mine)


def next_number(connection: Connection, job_id: str, count: int = 1) -> int:
    """The first of `count` new numbers of chunks."""
    mine = jobs.c.job_id == job_id
    connection.execute(update(jobs).where(mine).values(chunks=jobs.c.chunks + count))
    return int(connection.execute(select(jobs.c.chunks).where(mine)).scalar_one()) - count + 1


def _failing(connection: Connection, job_id: str) -> int:
    table = job_chunks.c
    failing = select(func.count()).where(table.job_id == job_id, table.state.in_(OPEN), table.attempts > 1)
    return int(connection.scalar(failing) or 0)


def _park(connection: Connection, row: Row[*tuple[Any, ...]], reason: str, now_us: int) -> None:
    here = (job_chunks.c.job_id == row.job_id, job_chunks.c.chunk == row.chunk, job_chunks.c.token == row.token)
    values = {"state": ChunkState.PARKED.value, "reason": reason, "token": row.token + 1, "updated_at_us": now_us}
    connection.execute(update(job_chunks).where(*here).values(**values))


def _write(connection: Connection, lease: Lease, values: Mapping[str, Any]) -> None:
    mine = (
        job_chunks.c.job_id == lease.job_id,
        job_chunks.c.chunk == lease.chunk,
        job_chunks.c.token == lease.token,
        job_chunks.c.state == ChunkState.LEASED.value,
    )
    if connection.execute(update(job_chunks).where(*mine).values(**values)).rowcount != 1:
        raise LeaseLost("another worker has the chunk, or the job was cancelled; nothing was written")


def _cut(reason: str | None) -> str | None:
    return None if reason is None else reason[:REASON_MAX]
