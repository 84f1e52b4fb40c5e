"""Around every page: sign-in before it, a form's token checked, and errors answered as pages and not as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from services.recommender.experiments.dashboard.access import forgery
from services.recommender.experiments.dashboard.access.sign_in import SignIn
from services.recommender.experiments.dashboard.ports import DashboardPort
from services.recommender.experiments.dashboard.visit import Visit, visit_of
from shared.errors import ClientError, Forbidden, NotFound, SilkrecError, Unauthenticated
from shared.observability import context
from shared.observability.logging import get_logger
from shared.web.problem import ProblemError

MAX_FIELDS = 100
_EXPLAINED = (400, 403, 404, 409, 422, 503)
_log = get_logger(__name__)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`request.state.dashboard`: what the pages work with. `now_s`: Unix time."""

    port: DashboardPort
    sign_in: SignIn
    now_s: Callable[[], float] = time.time


class PageRoute(APIRoute):
    """A route of HTML pages."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def page(request: Request) -> Response:
            try:
                return await handler(request)
            except Unauthenticated:
                return _to_sign_in(request)
            except SilkrecError as error:
                return error_page(request, error)
            except ProblemError as error:
                return error_page(request, error.error)
            except RequestValidationError:
                return error_page(request, NotFound("the address is malformed"))
            except HTTPException as error:
                return error_page(request, ClientError(str(error.detail)))
            except Exception:  # noqa: BLE001  (as the guard of every service; here it becomes a page)
                _log.error("unexpected error on a page", path=self.path, exc_info=True)
                return error_page(request, SilkrecError(""))

        return page


def dashboard_of(request: Request) -> Dashboard:
    dashboard: Dashboard = request.state.dashboard
    return dashboard


def anyone(request: Request) -> Visit:
    """For the sign-in page. Raises Forbidden where signing in would not help."""
    dashboard = dashboard_of(request)
    session = dashboard.sign_in.session(request, dashboard.now_s())
    return visit_of(request, session, dashboard.sign_in.secret)


def viewer(request: Request) -> Visit:
    """Raises Unauthenticated, which becomes a redirect to the sign-in page."""
    visit = anyone(request)
    if visit.session is None:
        raise Unauthenticated("sign in to see the dashboard")
    return visit


def editor(request: Request) -> Visit:
    visit = viewer(request)
    if visit.session is None or not visit.session.may_edit:
        raise Forbidden("a viewer may look at experiments and not change them")
    return visit


async def form_of(visit: Visit) -> dict[str, str]:
    """Fields of a POST, the last of a repeated name. Raises FormRefused unless it comes from our own page.

    Read with the standard library: no page uploads a file, and multipart parsing would be one more dependency.
    """
    request = visit.request
    forgery.check_origin(request, dashboard_of(request).sign_in.settings.origins)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ClientError("the form must be sent as application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise ClientError("the form is not readable") from None
    fields = {name: value.replace("\r\n", "\n").replace("\0", "") for name, value in pairs}
    forgery.check_token(fields.pop(forgery.FIELD, ""), visit.bound, visit.secret)
    return fields


def error_page(request: Request, error: SilkrecError) -> Response:
    """For whoever is signed in; for anybody else the page without navigation."""
    dashboard = dashboard_of(request)
    try:
        session = dashboard.sign_in.session(request, dashboard.now_s())
    except SilkrecError:
        session = None
    visit = visit_of(request, session, dashboard.sign_in.secret)
    known = error.status if error.status in _EXPLAINED else (500 if error.status >= 500 else 400)
    page: dict[str, Any] = {
        "status": error.status,
        "heading": visit.t(f"error.{known}"),
        "sentence": visit.t(f"error.{known}.what"),
        "detail": error.detail if error.status < 500 else "",
        "request_id": context.current_request_id() if error.status >= 500 else None,
    }
    return visit.page("error.html", page, status=error.status)


def _to_sign_in(request: Request) -> Response:
    """303 also after a POST: what it asked for must be asked again. Downloads of scripts are told as much."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"/dashboard/sign-in?next={quote(wanted, safe='')}" if request.method == "GET" else "/dashboard/sign-in"
    return RedirectResponse(target, 303, headers={"cache-control": "no-store"})


def safe_next(text: str) -> str:
    """Only pages of ours: `//host` and `\\host` would lead elsewhere."""
    plain = text.isascii() and text.isprintable() and "\\" not in text
    inside = text == "/dashboard" or text.startswith(("/dashboard/", "/dashboard?"))
    return text if plain and inside and "//" not in text.partition("?")[0] else "/dashboard"
