"""What the services' own figures say: pace against the deadline, refusals, rungs, lost slates, queues."""

from __future__ import annotations

import math
from collections.abc import Iterator

from services.cli.doctor.finding import Finding, Verdict, judged
from services.cli.doctor.scrape import ENOUGH, Figures
from shared.settings.roots import Settings

REC, INF, FEA, JOB = "silkrec_recommender", "silkrec_inference", "silkrec_features", "silkrec_jobs"
ROUTE = "/v1/recommend"
# The error budget is one answer in a thousand; the rest as the alerts have it.
LATE, VERY_LATE = 0.001, 0.01
DEGRADED, MOSTLY_DEGRADED = 0.05, 0.5
REFUSED, MOSTLY_REFUSED = 0.01, 0.2
ERRED = 0.3
BACKLOG = 1000
STUCK_S = 1800.0


def _current(figures: Figures, name: str, **labels: str) -> tuple[Figures, str]:
    """What grew while doctor looked, where that is enough to judge by."""
    if figures.before and figures.total(name, **labels) >= ENOUGH:
        return figures, "just now"
    return figures.since_start(), "since its start"


def recommender(figures: Figures, settings: Settings, where: str) -> Iterator[Finding]:
    yield from _pace(figures, settings.recommender.deadline_ms, where)
    yield from _rungs(figures, where)
    lost = figures.since_start().total(f"{REC}_journal_slates_lost_total")
    mend = "look at disk and database; recommender.journal_max_slates bounds what waits"
    yield judged("lost slates", lost, f"{lost:.0f} since its start that no journal holds", mend, warn=0, where=where)
    waiting = figures.value(f"{REC}_journal_slates_waiting") or 0.0
    mend = "the database takes slates slower than they are served: look at its disk and `silkrec database status`"
    yield judged(
        "journal", waiting, f"{waiting:.0f} slates wait for the database", mend,
        warn=BACKLOG, fail=settings.recommender.journal_max_slates * 0.9, where=where,
    )  # fmt: skip
    refused = figures.since_start().by(f"{REC}_release_refusals_total", "cause")
    if sum(refused.values()) > 0:
        causes = ", ".join(cause for (cause,), count in refused.items() if count)
        mend = "`silkrec releases rollback`, or restore the folder"
        yield Finding("release", "warn", f"releases were refused: {causes}", mend, where)


def _pace(figures: Figures, deadline_ms: float, where: str) -> Iterator[Finding]:
    name = f"{REC}_http_request_duration_seconds"
    current, when = _current(figures, f"{name}_count", route=ROUTE)
    asked = current.total(f"{name}_count", route=ROUTE)
    if asked < ENOUGH:
        yield Finding("pace", "ok", f"{asked:.0f} slates asked for, too few to judge", "", where)
        return
    in_time = current.total(f"{name}_bucket", route=ROUTE, le="0.068") if deadline_ms == 68 else None
    late = current.total(f"{REC}_deadline_misses_total") if in_time is None else asked - in_time
    p99_ms = current.quantile(name, 0.99, route=ROUTE) * 1000
    found = (
        f"p99 below {p99_ms:.0f} ms, {late / asked:.2%} of {asked:.0f} answers later than {deadline_ms:g} ms, {when}"
    )
    mend = "`silkrec tune batch`, fewer recommender.candidates, a larger recommender.reserve_ms, or more machines"
    yield judged("pace", late / asked, found, mend, warn=LATE, fail=VERY_LATE, where=where)
    errors = sum(
        count
        for (status,), count in current.by(f"{REC}_http_requests_total", "status", route=ROUTE).items()
        if status.startswith("5")
    )
    if errors:
        found, mend = f"{errors / asked:.2%} of answers are 5xx, {when}", "the recommender's log says why"
        yield judged("errors", errors / asked, found, mend, warn=0, fail=VERY_LATE, where=where)


def _rungs(figures: Figures, where: str) -> Iterator[Finding]:
    name = f"{REC}_slates_total"
    current, when = _current(figures, name)
    rungs = {rung: count for (rung,), count in current.by(name, "rung").items() if count > 0}
    served = sum(rungs.values())
    if served < ENOUGH:
        return
    shares = ", ".join(f"{rung} {count / served:.0%}" for rung, count in sorted(rungs.items(), key=lambda p: -p[1]))
    if not figures.value(f"{REC}_release_has_model"):
        yield Finding("rungs", "ok", f"{shares}, {when}; the release has no model", "", where)
        return
    below = 1 - rungs.get("model", 0.0) / served
    given_up = current.by(f"{REC}_degraded_stages_total", "stage", "cause")
    most = max(given_up.items(), key=lambda pair: pair[1], default=(("", ""), 0.0))
    why = f"; most often {most[0][0]}: {most[0][1]}" if most[1] > 0 else ""
    mend = "docs/runbooks/SilkrecDegraded.md; the inference service's findings say whether it has no model or no time"
    yield judged(
        "rungs", below, f"{shares}, {when}{why if below > DEGRADED else ''}", mend,
        warn=DEGRADED, fail=MOSTLY_DEGRADED, where=where,
    )  # fmt: skip


def inference(figures: Figures, settings: Settings, where: str) -> Iterator[Finding]:
    if figures.value(f"{INF}_engine_alive") == 0:
        yield Finding("engine", "fail", "the device's thread is dead", "restart `silkrec serve inference`", where)
    name = f"{INF}_requests_total"
    current, when = _current(figures, name)
    asked = current.total(name)
    if asked >= ENOUGH:
        by = {outcome: count for (outcome,), count in current.by(name, "outcome").items() if count}
        refused = sum(by.get(outcome, 0.0) for outcome in ("deadline", "overloaded", "error"))
        shares = ", ".join(f"{outcome} {count / asked:.1%}" for outcome, count in sorted(by.items()))
        mend = "`silkrec tune batch`, inference.threads, fewer recommender.candidates, another engine, or a GPU"
        yield judged(
            "engine", refused / asked, f"{shares}, {when}", mend, warn=REFUSED, fail=MOSTLY_REFUSED, where=where
        )
        yield from _engine_pace(current, when, settings, where)
    yield from _engine_health(figures, settings, where)


def _engine_pace(current: Figures, when: str, settings: Settings, where: str) -> Iterator[Finding]:
    batch_ms = current.quantile(f"{INF}_batch_duration_seconds", 0.99) * 1000
    wait_ms = current.quantile(f"{INF}_queue_duration_seconds", 0.99) * 1000
    if math.isnan(wait_ms):
        return  # jobs alone, and nobody waits for those
    spare = settings.recommender.deadline_ms - settings.recommender.reserve_ms
    found = f"p99 of a batch below {batch_ms:.0f} ms, of the wait below {wait_ms:.0f} ms, of {spare:g} ms, {when}"
    mend = "a smaller inference.dynamic_batching.max_batch_ms, or `silkrec tune batch`"
    # Both ends at once are rare, so one trip that fills the deadline by them is the first sign.
    yield judged("engine pace", batch_ms + wait_ms, found, mend, warn=spare, fail=2 * spare, where=where)


def _engine_health(figures: Figures, settings: Settings, where: str) -> Iterator[Finding]:
    error = figures.value(f"{INF}_prediction_error_ratio") or 0.0
    if error > ERRED and figures.since_start().total(f"{INF}_executions_total") >= ENOUGH:
        found = f"predicted batch times are off by {error:.0%}"
        yield Finding(
            "cost model", "warn", found, "nothing else should use this device; it learns within batches", where
        )
    splits = figures.since_start().total(f"{INF}_oom_splits_total")
    if splits:
        found = f"{splits:.0f} batches did not fit into the device's memory"
        yield Finding("device memory", "warn", found, "lower inference.cache.device_mb or max_batch_size", where)
    batching = settings.inference.dynamic_batching
    allowed = figures.value(f"{INF}_max_batch_requests")
    if batching.enabled and allowed and allowed < batching.max_batch_size:
        found = f"batches hold {allowed:.0f} requests, {batching.max_batch_size} are configured: memory ran out"
        yield Finding("batch size", "warn", found, "lower inference.dynamic_batching.max_batch_size", where)


def features(figures: Figures, where: str) -> Iterator[Finding]:
    refused = figures.total(f"{FEA}_events_refused_total")
    waiting = figures.value(f"{FEA}_events_queued") or 0.0
    mend = "the database commits slower than events come: look at its disk; features.queue_max_events bounds the wait"
    verdict: Verdict = "fail" if refused and figures.before else "warn" if waiting > BACKLOG else "ok"
    yield Finding(
        "events", verdict, f"{waiting:.0f} wait, {refused:.0f} refused", "" if verdict == "ok" else mend, where
    )
    dirty = figures.value(f"{FEA}_dirty_users") or 0.0
    mend = "Redis was away or is slow: their histories are read from the database until the sweeper has caught up"
    yield judged("dirty users", dirty, f"{dirty:.0f} users are newer in the database", mend, warn=BACKLOG, where=where)


def jobs(figures: Figures, now_s: float, where: str) -> Iterator[Finding]:
    running = figures.value(f"{JOB}_running_jobs") or 0.0
    last = f"{JOB}_last_progress_timestamp_seconds"
    progress = max((value for (name, _), value in figures.now.items() if name == last), default=0.0)
    if running and progress:
        idle_s = now_s - progress
        mend = "`silkrec jobs list`, then `silkrec jobs cancel`; the jobs log says what its chunks wait for"
        found = f"{running:.0f} running, the last chunk {idle_s / 60:.0f} min ago"
        yield judged("job progress", idle_s, found, mend, warn=STUCK_S / 3, fail=STUCK_S, where=where)
    starts = figures.since_start().total(f"{JOB}_worker_starts_total")
    if starts > 5:
        found = f"the worker was started {starts:.0f} times"
        yield Finding("worker", "warn", found, "the jobs log says what it dies of; jobs.concurrency", where)
