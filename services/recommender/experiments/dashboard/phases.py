"""New weights for what runs: a form that says what that does, and the POST that begins the phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard.guard import dashboard_of, editor, form_of
from services.recommender.experiments.dashboard.ports import NewPhase
from services.recommender.experiments.dashboard.view.about import url_of
from services.recommender.experiments.dashboard.visit import Visit
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registered import RegisteredExperiment
from shared.errors import Conflict, ValidationFailed


@dataclass(frozen=True, slots=True)
class WeightField:
    name: str
    variant: str
    value: str
    killed: bool


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/experiments/{key}/phase", shown, methods=["GET"])
    pages.add_api_route("/experiments/{key}/phase", begin, methods=["POST"])


async def shown(request: Request, key: str) -> Response:
    """Raises Conflict for what does not run."""
    visit = editor(request)
    experiment = await _running(request, key)
    definition = experiment.definition
    values = {f"weight_{place}": repr(one.weight) for place, one in enumerate(definition.variants)}
    return _page(visit, experiment, {**values, "coverage": repr(definition.coverage)}, [])


async def begin(request: Request, key: str) -> Response:
    """303 to the experiment, 422 with the form as it was filled in. Raises Conflict when the experiment changed since
    the form was shown."""
    visit = editor(request)
    values = await form_of(visit)
    experiment = await _running(request, key)
    if values.get("seen") != str(experiment.updated_at_us):
        raise Conflict(f"{key} was changed after the form was shown")
    try:
        wanted = _read(values, experiment, visit)
        await dashboard_of(request).port.new_phase(key, wanted, visit.session.actor if visit.session else "")
    except ValidationFailed as error:
        return _page(visit, experiment, values, [fault.message for fault in error.errors] or [error.detail], status=422)
    return visit.finish(RedirectResponse(url_of(key), 303))


def _read(values: Mapping[str, str], experiment: RegisteredExperiment, visit: Visit) -> NewPhase:
    definition = experiment.definition
    try:
        weights = tuple(float(values.get(f"weight_{place}", "")) for place in range(len(definition.variants)))
        coverage = float(values.get("coverage", ""))
    except ValueError:
        message = f"{visit.t('phase.weights')}, {visit.t('form.coverage')}: {visit.t('form.error.number')}"
        raise ValidationFailed(message) from None
    # The phase's number makes the seed one of its own: a second draw by the same seed would be the same draw.
    seed = f"{definition.key}-{definition.phase + 1}" if values.get("redraw") else None
    return NewPhase(weights=weights, coverage=coverage, seed=seed, keep_out_earlier=bool(values.get("keep_out")))


def _page(
    visit: Visit, experiment: RegisteredExperiment, values: Mapping[str, str], faults: list[str], *, status: int = 200
) -> Response:
    definition = experiment.definition
    context = {
        "key": definition.key,
        "back": url_of(definition.key),
        "seen": str(experiment.updated_at_us),
        "phase": str(definition.phase + 1),
        "weights": [
            WeightField(f"weight_{place}", one.key, values.get(f"weight_{place}", ""), one.killed)
            for place, one in enumerate(definition.variants)
        ],
        "coverage": values.get("coverage", ""),
        "redraw": bool(values.get("redraw")),
        "keep_out": bool(values.get("keep_out")),
        "sticky": definition.fallback_unit is not None,
        "faults": faults,
    }
    return visit.page("phase.html", context, status=status)


async def _running(request: Request, key: str) -> RegisteredExperiment:
    found = await dashboard_of(request).port.get(key)
    if found.definition.status is not Status.RUNNING:
        raise Conflict(f"{key} is {found.definition.status}; a phase begins in what runs")
    return found
