"""The form for a new experiment: shown empty, and again with every fault beside its field."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard import drafts
from services.recommender.experiments.dashboard.guard import dashboard_of, editor, form_of
from services.recommender.experiments.dashboard.view.about import url_of
from services.recommender.experiments.dashboard.visit import Visit
from shared.errors import Conflict, ValidationFailed

CORRECTIONS = ("holm", "benjamini_hochberg", "none")
_ADVANCED = frozenset(("time_zone", "currency", "alpha", "power", "correction", "seed", "namespace", "namespace_range"))


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/new", empty, methods=["GET"])
    pages.add_api_route("/new", submit, methods=["POST"])


async def empty(request: Request) -> Response:
    visit = editor(request)
    return await _page(visit, drafts.DEFAULTS, {}, [])


async def submit(request: Request) -> Response:
    """303 to the new draft; 422 with the form as it was filled in, 409 for a name in use."""
    visit = editor(request)
    values = {name: (await form_of(visit)).get(name, "") for name in drafts.DEFAULTS}
    try:
        experiment = drafts.read(values, visit.t)
        actor = visit.session.actor if visit.session is not None else ""
        created = await dashboard_of(request).port.create(experiment, actor)
    except drafts.FormFaults as faults:
        return await _page(visit, values, faults.by_field, [], status=422)
    except ValidationFailed as error:
        by_field, general = drafts.place(error)
        return await _page(visit, values, by_field, general, status=422)
    except Conflict as error:
        return await _page(visit, values, {"key": error.detail}, [], status=409)
    return visit.finish(RedirectResponse(url_of(created.definition.key), 303))


async def _page(
    visit: Visit, values: Mapping[str, str], errors: Mapping[str, str], general: list[str], *, status: int = 200
) -> Response:
    context = {
        "values": values,
        "errors": errors,
        "general": general,
        "label_of": lambda name: visit.t(f"form.{name}"),
        "variant_numbers": range(1, drafts.VARIANTS + 1),
        "metric_choices": await dashboard_of(visit.request).port.metrics(),
        "corrections": CORRECTIONS,
        "advanced_open": bool(_ADVANCED & errors.keys()),
    }
    return visit.page("form.html", context, status=status)
