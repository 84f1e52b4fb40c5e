"""Start, stop, ship, roll back, kill: a page that says what will happen, and the POST that does it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard.guard import dashboard_of, editor, form_of
from services.recommender.experiments.dashboard.ports import DashboardPort
from services.recommender.experiments.dashboard.view.about import compact, formats_of, url_of
from services.recommender.experiments.dashboard.view.results import is_blocked
from services.recommender.experiments.dashboard.visit import Visit
from services.recommender.experiments.registered import RegisteredExperiment
from shared.errors import Conflict, NotFound, ValidationFailed

ACTIONS = ("start", "stop", "ship", "roll_back", "kill")
_WITH_VARIANT = ("ship", "kill")


def add_to(pages: APIRouter) -> None:
    for action in ACTIONS:
        pages.add_api_route(f"/experiments/{{key}}/{action}", confirm, methods=["GET"])
        pages.add_api_route(f"/experiments/{{key}}/{action}", carry_out, methods=["POST"])


@dataclass(frozen=True, slots=True)
class VariantChoice:
    key: str
    settings: str


async def confirm(request: Request, key: str) -> Response:
    visit, action = editor(request), _action(request)
    port = dashboard_of(request).port
    experiment = await port.get(key)
    report = await port.report(key)
    chosen = request.query_params.get("variant", "")
    if action == "kill" and experiment.definition.position(chosen) < 0:
        raise NotFound(f"{key} has no such variant")
    facts = {
        "key": key,
        "variant": (experiment.shipped or "") if action == "roll_back" else chosen,
        "coverage": formats_of(experiment, visit.language).share(experiment.definition.coverage, 0),
    }
    context = {
        "key": key,
        "heading": visit.t(f"confirm.{action}", **facts),
        "consequence": visit.t(f"confirm.{action}.what", **facts),
        "words": visit.t(f"action.{action}"),
        "kind": "primary" if action in ("start", "ship") else "danger",
        "action": f"{url_of(key)}/{action}",
        "back": url_of(key),
        "seen": str(experiment.updated_at_us),
        "variants": _choices(action, experiment, chosen),
        "chosen": chosen or ((report.conclusion.variant or "") if not is_blocked(report) else ""),
        "blocked": action == "ship" and is_blocked(report),
        "simulated": report.simulated,
    }
    return visit.page("confirm.html", context)


async def carry_out(request: Request, key: str) -> Response:
    """303 to the experiment. Raises Conflict when it changed since the page was shown."""
    visit, action = editor(request), _action(request)
    fields = await form_of(visit)
    port = dashboard_of(request).port
    experiment = await port.get(key)
    if fields.get("seen") != str(experiment.updated_at_us):
        raise Conflict(f"{key} was changed after the page was shown")
    variant = fields.get("variant", "")
    if action in _WITH_VARIANT and not variant:
        raise ValidationFailed("choose a variant")
    await _call(port, action, key, variant, visit)
    return visit.finish(RedirectResponse(url_of(key), 303))


async def _call(port: DashboardPort, action: str, key: str, variant: str, visit: Visit) -> None:
    actor = visit.session.actor if visit.session is not None else ""
    match action:
        case "start":
            await port.start(key, actor)
        case "stop":
            await port.stop(key, actor)
        case "ship":
            await port.ship(key, variant, actor)
        case "roll_back":
            await port.roll_back(key, actor)
        case _:
            await port.kill_variant(key, variant, actor)


def _choices(action: str, experiment: RegisteredExperiment, chosen: str) -> list[VariantChoice]:
    """Killed variants cannot be shipped; a kill names its one."""
    variants = experiment.definition.variants if action in _WITH_VARIANT else ()
    return [
        VariantChoice(variant.key, compact(dict(variant.settings)))
        for variant in variants
        if (variant.key == chosen if action == "kill" else not variant.killed)
    ]


def _action(request: Request) -> str:
    return request.url.path.rpartition("/")[2]
