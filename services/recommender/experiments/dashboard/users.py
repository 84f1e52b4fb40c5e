"""A user as the suite sees them: history, newest slate, sources, and why not. Shows what the port returns."""

from __future__ import annotations

from dataclasses import asdict
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard.downloads import answer, flat
from services.recommender.experiments.dashboard.guard import dashboard_of, viewer
from services.recommender.experiments.dashboard.view.about import url_of


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/users", search, methods=["GET"])
    pages.add_api_route("/users/{user_id}/all.{kind}", download, methods=["GET"])
    pages.add_api_route("/users/{user_id}", user, methods=["GET"])


async def search(request: Request) -> Response:
    visit = viewer(request)
    wanted = request.query_params.get("id", "").strip()
    if wanted:
        return visit.finish(RedirectResponse(base(wanted), 303))
    return visit.page("user.html", {"u": None}, section="users")


async def user(request: Request, user_id: str) -> Response:
    visit = viewer(request)
    found = await dashboard_of(request).port.user(user_id)
    context = {"u": found, "user_base": f"{base(user_id)}/all", "experiment_url": url_of}
    return visit.page("user.html", context, section="users")


async def download(request: Request, user_id: str, kind: str) -> Response:
    visit = viewer(request)
    body = asdict(await dashboard_of(request).port.user(user_id))
    rows = [{"where": where, "value": value} for where, value in flat(body)]
    return visit.finish(answer(kind, "user", body, ("where", "value"), rows))


def base(user_id: str) -> str:
    return f"/dashboard/users/{quote(user_id, safe='')}"
