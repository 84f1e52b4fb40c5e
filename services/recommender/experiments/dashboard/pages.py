"""The list, an experiment's page, sign-in and sign-out. `router()` has all of the dashboard."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard import assets, changes, create, downloads, jobs, phases, users
from services.recommender.experiments.dashboard.access import sessions
from services.recommender.experiments.dashboard.access.sign_in import SESSION_COOKIE
from services.recommender.experiments.dashboard.guard import PageRoute, anyone, dashboard_of, form_of, safe_next, viewer
from services.recommender.experiments.dashboard.view import about
from services.recommender.experiments.dashboard.view.charts import charts
from services.recommender.experiments.dashboard.view.results import ResultsView
from services.recommender.experiments.dashboard.visit import COOKIE_PATH, Visit
from shared.errors import NotFound

PREFIX = "/dashboard"


def router() -> APIRouter:
    """Needs `request.state.dashboard` (guard.Dashboard) and `request.state.keys`."""
    pages = APIRouter(prefix=PREFIX, route_class=PageRoute, include_in_schema=False)
    pages.add_api_route("", experiments, methods=["GET"])
    pages.add_api_route("/sign-in", sign_in_form, methods=["GET"])
    pages.add_api_route("/sign-in", sign_in, methods=["POST"])
    pages.add_api_route("/sign-out", sign_out, methods=["POST"])
    pages.add_api_route("/static/{name}", assets.answer, methods=["GET"])
    for part in (create, downloads, changes, phases, users, jobs):
        part.add_to(pages)
    pages.add_api_route("/experiments/{key}", experiment, methods=["GET"])
    pages.add_api_route("/{rest:path}", nothing, methods=["GET", "POST"])
    return pages


async def experiments(request: Request) -> Response:
    visit = viewer(request)
    rows = [about.row_view(row, visit.language) for row in await dashboard_of(request).port.list()]
    return visit.page("list.html", {"rows": rows, "simulated": any(row.simulated for row in rows)})


async def experiment(request: Request, key: str) -> Response:
    visit = viewer(request)
    port = dashboard_of(request).port
    registered = await port.get(key)
    report = await port.report(key)
    audit = await port.audit(key)
    may_edit = visit.session is not None and visit.session.may_edit
    t, f = visit.t, about.formats_of(registered, visit.language)
    view = ResultsView(report, t, f)
    context = {
        "f": f,
        "e": about.head_view(registered),
        "r": report,
        "alarms": view.alarms(),
        "waiting": await port.waiting(registered),
        "decision": view.decision(),
        "metrics": view.metrics(),
        "primary_title": view.title(view.primary()),
        "lift_rows": report.lift_by_day,
        "latency_lifts": view.latency_lifts(),
        "segments": [{"name": name, "cells": cells} for name, cells in view.segments()],
        "charts": charts(view),
        "about": about.about(registered, t, f),
        "variants": about.variant_views(registered, t, f, may_kill=may_edit),
        "actions": about.action_views(registered, t) if may_edit else [],
        "audit": [
            {
                "at_us": entry.at_us,
                "actor": entry.actor,
                "action": t.known(f"audit.action.{entry.action}", entry.action),
                "detail": about.compact(dict(entry.detail)),
            }
            for entry in audit
        ],
    }
    return visit.page("experiment.html", context)


async def sign_in_form(request: Request) -> Response:
    visit = anyone(request)
    wanted = safe_next(request.query_params.get("next", ""))
    if visit.session is not None:
        return visit.finish(RedirectResponse(wanted, 303))
    return _sign_in_page(visit, wanted, refused=False)


async def sign_in(request: Request) -> Response:
    visit, dashboard = anyone(request), dashboard_of(request)
    fields = await form_of(visit)
    wanted = safe_next(fields.get("next", ""))
    found = dashboard.sign_in.by_key(request, fields.get("key", ""), dashboard.now_s())
    if found is None:
        return _sign_in_page(visit, wanted, refused=True)
    answer = visit.finish(RedirectResponse(wanted, 303))
    ttl_s = dashboard.sign_in.settings.session_ttl_s
    visit.remember(answer, sessions.write(found, dashboard.sign_in.secret), ttl_s)
    return answer


async def sign_out(request: Request) -> Response:
    visit = viewer(request)
    await form_of(visit)
    answer = visit.finish(RedirectResponse(f"{PREFIX}/sign-in", 303))
    answer.delete_cookie(SESSION_COOKIE, path=COOKIE_PATH, httponly=True, samesite="lax")
    return answer


async def nothing(request: Request, rest: str) -> Response:
    """A viewer is told so; anybody else signs in first, and learns nothing of what exists."""
    viewer(request)
    raise NotFound(f"there is no {PREFIX}/{rest[:200]}")


def _sign_in_page(visit: Visit, wanted: str, *, refused: bool) -> Response:
    dashboard = dashboard_of(visit.request)
    context = {
        "refused": refused,
        "next": wanted,
        "by_key": visit.request.state.keys.has_keys(),
        "hours": visit.f.number(dashboard.sign_in.settings.session_ttl_s / 3600, 2),
    }
    return visit.page("sign_in.html", context, status=403 if refused else 200)
