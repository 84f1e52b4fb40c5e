"""Batch jobs: how far each is, what was given up and why, and its end by somebody's hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard.downloads import answer
from services.recommender.experiments.dashboard.formats import Formats
from services.recommender.experiments.dashboard.guard import editor, form_of, viewer
from services.recommender.jobs.desk import JobDesk, Seen, at_desk
from services.recommender.jobs.shown import as_shown
from services.recommender.jobs.store.jobs import JobState

SHOWN = 50
_COLUMNS = ("job_id", "type", "state", "done", "total", "failed", "rate", "eta_s", "started_at", "finished_at", "actor")
_KINDS = {
    JobState.PLANNING: "live",
    JobState.RUNNING: "live",
    JobState.PUBLISHING: "live",
    JobState.SUCCEEDED: "good",
    JobState.FAILED: "bad",
    JobState.CANCELLED: "done",
}


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/jobs.{kind}", download, methods=["GET"])
    pages.add_api_route("/jobs", jobs, methods=["GET"])
    pages.add_api_route("/jobs/{job_id}", job, methods=["GET"])
    pages.add_api_route("/jobs/{job_id}/cancel", confirm, methods=["GET"])
    pages.add_api_route("/jobs/{job_id}/cancel", cancel, methods=["POST"])


async def jobs(request: Request) -> Response:
    visit = viewer(request)
    rows = [_row(seen, visit.f) for seen in await at_desk(request, _newest)]
    return visit.page("jobs.html", {"rows": rows, "most": SHOWN}, section="jobs")


async def job(request: Request, job_id: str) -> Response:
    visit = viewer(request)
    seen = await at_desk(request, lambda desk: desk.get(job_id))
    shown = as_shown(seen, detail=True)
    context = {
        "row": _row(seen, visit.f),
        "params": _facts(shown["params"]),
        "output": _facts(shown["output"]),
        "job": seen.job,
        "parked": shown["parked"],
        "failures": shown["failures"],
        "may_cancel": seen.job.active and visit.session is not None and visit.session.may_edit,
    }
    return visit.page("job.html", context, section="jobs")


async def download(request: Request, kind: str) -> Response:
    visit = viewer(request)
    found = [as_shown(seen) for seen in await at_desk(request, _newest)]
    return visit.finish(answer(kind, "jobs", found, _COLUMNS, [{**one, **one["progress"]} for one in found]))


async def confirm(request: Request, job_id: str) -> Response:
    visit = editor(request)
    seen = await at_desk(request, lambda desk: desk.get(job_id))
    return visit.page("job_cancel.html", {"row": _row(seen, visit.f)}, section="jobs")


async def cancel(request: Request, job_id: str) -> Response:
    """303 to the job. Raises Conflict for one that has ended."""
    visit = editor(request)
    await form_of(visit)
    await at_desk(request, lambda desk: desk.cancel(job_id))
    return visit.finish(RedirectResponse(_url(job_id), 303))


def _row(seen: Seen, f: Formats) -> dict[str, Any]:
    job, progress = seen.job, seen.progress
    share = (progress.done + progress.failed) / progress.total if progress.total else 0.0
    return {
        "id": job.job_id,
        "url": _url(job.job_id),
        "type": job.kind,
        "state": job.state.value,
        "state_kind": _KINDS[job.state],
        "share": round(share * 100, 1),
        "done": f.count(progress.done),
        "total": f.count(progress.total),
        "failed": f.count(progress.failed),
        "rate": f.number(progress.rate, 3),
        "eta": "–" if progress.eta_s is None else _duration(progress.eta_s),
        "started_at_us": job.started_at_us,
        "finished_at_us": job.finished_at_us,
        "actor": job.actor,
    }


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for name, value in values.items()
    ]


def _duration(seconds: float) -> str:
    """h:mm:ss"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _newest(desk: JobDesk) -> list[Seen]:
    return desk.page(limit=SHOWN, state=None, after=None)


def _url(job_id: str) -> str:
    return f"/dashboard/jobs/{job_id}"
