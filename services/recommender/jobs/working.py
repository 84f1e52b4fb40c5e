"""One chunk from lease to commit: planned, made or published. Blocking; one at a time in a worker process.

What fails is sorted here: a dependency that is away costs the chunk nothing, a fault of the chunk is counted, and a
lost lease (somebody else has it, or the job was cancelled) throws the work away.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from sqlalchemy import Connection

from services.recommender.catalogue.columns import format_time
from services.recommender.jobs import asks as packing
from services.recommender.jobs.heart import Heart
from services.recommender.jobs.leases import DEPENDENCY_WAIT_S, ChunkKind, ChunkState, LeaseLost, renew_every_s
from services.recommender.jobs.metrics import ChunkMetrics
from services.recommender.jobs.outputs import parquet
from services.recommender.jobs.outputs import redis as redis_output
from services.recommender.jobs.outputs.made import Made
from services.recommender.jobs.planning import Planner
from services.recommender.jobs.spec import JobBody, read_stored
from services.recommender.jobs.store import chunks, settling
from services.recommender.jobs.store import jobs as job_rows
from services.recommender.jobs.store.chunks import Lease
from services.recommender.jobs.store.clock import database_clock
from services.recommender.jobs.store.rules import Rules
from services.recommender.jobs.users import users_of
from services.recommender.jobs.work import SlateMaker, UserSlate
from shared.errors import DatabaseUnavailable, DependencyError, NothingToServe, Overloaded, SilkrecError
from shared.observability import tracing
from shared.observability.context import RequestContext
from shared.observability.logging import get_logger
from shared.settings.roots import Settings
from shared.storage.database import Database

T = TypeVar("T")
# A cancelled job is noticed by the lease's next renewal, and the wait for slates looks so often whether it was.
LOOK_S = 0.1
# A database that restarts is back in seconds; longer than a lease others may have the chunk anyway.
COMMIT_RETRY_S = 30.0
_BLAMELESS = (DependencyError, Overloaded, NothingToServe)
_log = get_logger(__name__)


@dataclass(frozen=True)
class Bench:
    """What a worker process works with. `run` carries a coroutine out on the loop that `maker` and `redis` live on."""

    settings: Settings
    database: Database
    redis: Redis
    maker: Callable[[], SlateMaker]
    run: Callable[[Coroutine[Any, Any, Any]], concurrent.futures.Future[Any]]
    worker: str
    metrics: ChunkMetrics
    sleep: Callable[[float], None] = time.sleep

    @property
    def rules(self) -> Rules:
        return Rules.of(self.settings.jobs)


class SoftLimit(SilkrecError):
    code = "soft_limit"
    title = "A chunk took longer than jobs.soft_limit_s"


def turn(bench: Bench, sent: str | None = None) -> bool:
    """One chunk, whatever becomes of it; False when none was due. `sent`: traceparent of the message that led here.
    Raises DatabaseUnavailable."""
    lease, origin = _claim(bench)
    if lease is None:
        return False
    asked, links = (None, [sent]) if origin is None else (origin.request_id, [origin.traceparent, sent])
    with tracing.own_trace(f"chunk {lease.kind.value}", "consumer", request_id=asked, links=links):
        tracing.note(silkrec_job_id=lease.job_id, silkrec_chunk=lease.chunk, silkrec_users=lease.users)
        _counted(bench, lease)
        settle(bench.database, lease.job_id, bench.rules)
    return True


def _counted(bench: Bench, lease: Lease) -> None:
    """Raises DatabaseUnavailable."""
    _log.info("chunk leased", job_id=lease.job_id, chunk=lease.chunk, kind=lease.kind.value, attempt=lease.attempts)
    began = time.monotonic()
    try:
        outcome = _carry_out(bench, lease)
    except LeaseLost:
        _log.warning("a lease was lost and the work is thrown away", job_id=lease.job_id, chunk=lease.chunk)
        outcome = "lost"
    bench.metrics.seconds.labels(lease.kind.value).observe(time.monotonic() - began)
    bench.metrics.ended.labels(lease.kind.value, outcome).inc()
    tracing.note(silkrec_outcome=outcome)


def _claim(bench: Bench) -> tuple[Lease | None, RequestContext | None]:
    """With the request that asked for its job. Raises DatabaseUnavailable."""
    parked: list[ChunkKind] = []

    def take(connection: Connection) -> tuple[Lease | None, RequestContext | None]:
        parked.clear()  # of an attempt that was rolled back
        lease = chunks.claim(connection, bench.worker, bench.rules, parked=parked.append)
        return lease, None if lease is None else job_rows.origin(connection, lease.job_id)

    lease, origin = bench.database.transact(take)
    for kind in parked:
        bench.metrics.ended.labels(kind.value, ChunkState.PARKED.value).inc()
    if lease is not None:
        bench.metrics.started.labels(lease.kind.value).inc()
        bench.metrics.taken_over.inc(lease.taken_over)
    return lease, origin


def settle(database: Database, job_id: str, rules: Rules) -> None:
    """Raises DatabaseUnavailable, and whatever a damaged row leads to."""

    def publishes(job: job_rows.JobRow) -> bool:
        return "parquet" in read_stored(dict(job.spec)).outputs()

    database.transact(lambda connection: settling.settle(connection, job_id, rules, publishes=publishes))


def _carry_out(bench: Bench, lease: Lease) -> str:
    """The outcome, one of `metrics.OUTCOMES`. Raises LeaseLost, DatabaseUnavailable (the lease then runs out, and the
    chunk is due again)."""
    database, rules = bench.database, bench.rules

    def renew() -> None:
        database.transact(lambda connection: chunks.renew(connection, lease, rules))

    try:
        with Heart(renew, renew_every_s(bench.settings.jobs.lease_s)) as heart:
            return "succeeded" if _dispatch(bench, lease, heart) else "waits"
    except LeaseLost:
        raise
    except _BLAMELESS as error:
        _log.warning("a chunk waits for a dependency", job_id=lease.job_id, chunk=lease.chunk, cause=error.detail)
        reason = f"{error.code}: {error.detail}"
        wait_s = error.retry_after_s or DEPENDENCY_WAIT_S
        _commit(bench, lambda connection: chunks.release(connection, lease, reason, wait_s=wait_s))
        return "waits"
    except Exception as error:  # noqa: BLE001  (whatever a chunk does to its worker, it is counted and said)
        expected = isinstance(error, SilkrecError)
        _log.error("a chunk failed", job_id=lease.job_id, chunk=lease.chunk, exc_info=None if expected else error)
        reason = (
            f"{error.code}: {error.detail}" if isinstance(error, SilkrecError) else f"{type(error).__name__}: {error}"
        )
        state = _commit(bench, lambda connection: _fail(connection, lease, reason, rules))
        return "parked" if state is ChunkState.PARKED else "retried"


def _fail(connection: Connection, lease: Lease, reason: str, rules: Rules) -> ChunkState:
    state = chunks.fail(connection, lease, reason, rules)
    if state is ChunkState.PARKED:
        _log.error("a chunk is parked", job_id=lease.job_id, chunk=lease.chunk, users=lease.users, reason=reason)
    return state


def _dispatch(bench: Bench, lease: Lease, heart: Heart) -> bool:
    """Whether the chunk is done; a plan may take several turns."""
    with bench.database.read() as connection:
        job = job_rows.get(connection, lease.job_id)
        now_us = database_clock(connection)
    body = read_stored(dict(job.spec))
    if lease.kind is ChunkKind.PLAN:
        return _plan(bench, lease, body, job.cursor, now_us, heart)
    if lease.kind is ChunkKind.PUBLISH:
        _publish(bench, lease, job, body)
    else:
        _make(bench, lease, body, now_us, heart)
    return True


def _plan(bench: Bench, lease: Lease, body: JobBody, cursor: Any, now_us: int, heart: Heart) -> bool:
    settings = bench.settings
    people = users_of(
        body, database=bench.database, schema=settings.data, input_dir=settings.job_input_dir(), now_us=now_us
    )
    planner = Planner(
        bench.database, lease, people, bench.rules, turn_s=settings.jobs.soft_limit_s / 2, stopped=lambda: heart.lost
    )
    if planner.plan(cursor):
        return True
    bench.database.transact(lambda connection: chunks.release(connection, lease, None, wait_s=0.0))
    return False


def _make(bench: Bench, lease: Lease, body: JobBody, now_us: int, heart: Heart) -> None:
    began = time.monotonic()
    spec, outputs = body.slate_spec(), body.outputs()
    asks = packing.unpack(lease.asks or b"")
    maker = bench.maker()
    release = maker.release
    slates: list[UserSlate] = _wait(bench, maker.slates(spec, asks), began, heart)
    if [slate.user_key for slate in slates] != [ask.user_key for ask in asks]:
        raise RuntimeError("the slate maker answered for other users than it was asked")
    if maker.release != release:
        raise Overloaded("the release changed while a chunk was made; it is made again", retry_after_s=0.1)
    made = Made.of(slates, release=release, scene=spec.scene, made_at_us=now_us)
    if "redis" in outputs:
        _wait(bench, redis_output.write(bench.redis, made, bench.settings.jobs.batch_slate_ttl_s), began, heart)
    staged = None
    if "parquet" in outputs:
        staged = parquet.stage(folder_of(bench.settings, lease.job_id), lease.chunk, lease.token, made)
    done = chunks.Done(
        rows=made.rows() if "database" in outputs else (), users_done=len(made.slates), failures=made.failures,
        checksum=made.checksum(), seconds=time.monotonic() - began, output=staged, note=made.note(),
    )  # fmt: skip
    _commit(bench, lambda connection: chunks.finish(connection, lease, done))
    bench.metrics.users.labels("done").inc(done.users_done)
    bench.metrics.users.labels("failed").inc(len(done.failures))


def _publish(bench: Bench, lease: Lease, job: job_rows.JobRow, body: JobBody) -> None:
    with bench.database.read() as connection:
        parts = settling.parts(connection, lease.job_id)
    about = {
        "job_id": job.job_id, "type": job.kind, "scene": body.params.scene, "created_at": format_time(job.created_at_us)
    }  # fmt: skip
    output = parquet.publish(folder_of(bench.settings, lease.job_id), about, parts)
    _commit(bench, lambda connection: settling.published(connection, lease, output, bench.rules))


def folder_of(settings: Settings, job_id: str) -> Path:
    return settings.job_output_dir() / job_id


def _wait(bench: Bench, work: Coroutine[Any, Any, T], began: float, heart: Heart) -> T:
    """The answer of `work`; it is cancelled once the lease is lost. Raises LeaseLost, SoftLimit, what `work` raises."""
    future = bench.run(work)
    limit_s = bench.settings.jobs.soft_limit_s
    while not concurrent.futures.wait((future,), LOOK_S).done:
        if heart.lost or time.monotonic() - began > limit_s:
            future.cancel()
            if heart.lost:
                raise LeaseLost("the lease was lost while slates were made")
            raise SoftLimit(f"a chunk took longer than jobs.soft_limit_s ({limit_s:g} s)")
    return future.result()  # type: ignore[no-any-return]


def _commit(bench: Bench, write: Callable[[Connection], T]) -> T:
    """Through a restart of the database: the token makes a late commit harmless, and computing again costs seconds.

    A commit whose answer was lost shows as a lost lease, and the chunk is done."""
    until = time.monotonic() + COMMIT_RETRY_S
    while True:
        try:
            return bench.database.transact(write)
        except DatabaseUnavailable:
            if time.monotonic() > until:
                raise
            bench.sleep(0.25)
