"""A job as API, command line and dashboard show it."""

from __future__ import annotations

from typing import Any

from services.recommender.catalogue.columns import format_time
from services.recommender.jobs.desk import Seen
from services.recommender.jobs.spec import read_stored
from services.recommender.jobs.store.jobs import NAMING, can_read


def as_shown(seen: Seen, *, detail: bool = False) -> dict[str, Any]:
    """Lists of users are counted and not repeated; once a job is over they are gone."""
    job, progress = seen.job, seen.progress
    # Of a newer release: its progress is shown; what its params mean, and which of them name users, is not known.
    readable = can_read(job.spec)
    to = list(read_stored(dict(job.spec)).outputs()) if readable else []
    given = job.spec.get("params", {}) if readable else {}
    params = {name: f"{len(value)} given" if name in NAMING else value for name, value in given.items()}
    shown: dict[str, Any] = {
        "job_id": job.job_id,
        "type": job.kind,
        "state": job.state.value,
        "params": params,
        "progress": {"done": progress.done, "total": progress.total, "failed": progress.failed},
        "rate": None if progress.rate is None else round(progress.rate, 2),
        "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
        "created_at": format_time(job.created_at_us),
        "started_at": None if job.started_at_us is None else format_time(job.started_at_us),
        "finished_at": None if job.finished_at_us is None else format_time(job.finished_at_us),
        "output": {"to": to, **(job.output or {})},
        "reason": job.reason,
        "checksum": job.checksum,
        "actor": job.actor,
    }
    if detail:
        shown["parked"] = [{"chunk": chunk, "users": users, "reason": why} for chunk, users, why in seen.parked]
        shown["failures"] = [{"user": user, "reason": why} for user, why in seen.failures]
    return shown
