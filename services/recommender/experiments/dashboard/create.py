"""The form of a draft: for a new one, and to edit one. It is shown again with every fault beside its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.recommender.experiments.dashboard import drafts
from services.recommender.experiments.dashboard.guard import dashboard_of, editor, form_of
from services.recommender.experiments.dashboard.view.about import url_of
from services.recommender.experiments.dashboard.visit import Visit
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registered import RegisteredExperiment
from shared.errors import Conflict, ValidationFailed

CORRECTIONS = ("holm", "benjamini_hochberg", "none")
_ADVANCED = frozenset(
    ("time_zone", "currency", "alpha", "power", "correction", "seed", "namespace", "namespace_range", "forced",
     "holdout", "holdout_ends")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Form:
    """`before`: the draft that is edited; None: a new one."""

    visit: Visit
    before: RegisteredExperiment | None = None
    holdout: bool = False

    @property
    def action(self) -> str:
        if self.before is not None:
            return f"{self.back}/edit"
        return "/dashboard/new?holdout=1" if self.holdout else "/dashboard/new"

    @property
    def back(self) -> str:
        return "/dashboard" if self.before is None else url_of(self.before.definition.key)

    @property
    def kind(self) -> str:
        """Of the sentences."""
        return "_edit" if self.before is not None else "_holdout" if self.holdout else ""

    async def page(
        self,
        values: Mapping[str, str],
        errors: Mapping[str, str] | None = None,
        general: list[str] | None = None,
        *,
        status: int = 200,
    ) -> Response:
        t, errors = self.visit.t, errors or {}
        key = "" if self.before is None else self.before.definition.key
        advanced = _ADVANCED & errors.keys() or self.holdout or values["holdout"] or values["forced"]
        context = {
            "title": t(f"form.title{self.kind}", key=key),
            "lead": t(f"form.lead{self.kind}"),
            "submit": t("form.submit_edit" if self.before is not None else "form.submit"),
            "action": self.action,
            "back": self.back,
            "edited": key,
            "seen": "" if self.before is None else str(self.before.updated_at_us),
            "values": values,
            "errors": errors,
            "general": general or [],
            "label_of": lambda name: _label(self.visit, name),
            "variant_numbers": range(1, drafts.rows_of(values) + 1),
            "metric_choices": await dashboard_of(self.visit.request).port.metrics(),
            "corrections": CORRECTIONS,
            "holdouts": drafts.HOLDOUTS,
            "advanced_open": bool(advanced),
        }
        return self.visit.page("form.html", context, status=status)


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/new", empty, methods=["GET"])
    pages.add_api_route("/new", submit, methods=["POST"])
    pages.add_api_route("/experiments/{key}/edit", filled, methods=["GET"])
    pages.add_api_route("/experiments/{key}/edit", submit, methods=["POST"])


async def empty(request: Request) -> Response:
    """`?holdout=1`: filled in as a holdout begins."""
    holdout = request.query_params.get("holdout") == "1"
    form = _Form(editor(request), holdout=holdout)
    return await form.page(drafts.HOLDOUT_DEFAULTS if holdout else drafts.DEFAULTS)


async def filled(request: Request, key: str) -> Response:
    """Raises Conflict for what is no draft any more."""
    visit = editor(request)
    draft = await _draft(request, key)
    return await _Form(visit, draft).page(drafts.write(draft))


async def submit(request: Request, key: str = "") -> Response:
    """303 to the draft; 422 with the form as it was filled in, 409 for a name in use. Raises Conflict when the draft
    changed since the form was shown."""
    visit = editor(request)
    sent = await form_of(visit)
    before = await _draft(request, key) if key else None
    if before is not None and sent.get("seen") != str(before.updated_at_us):
        raise Conflict(f"{key} was changed after the form was shown")
    values = {name: sent.get(name, "") for name in drafts.DEFAULTS}
    if before is not None:
        values["key"] = key
    form = _Form(visit, before, holdout=request.query_params.get("holdout") == "1")
    actor = visit.session.actor if visit.session is not None else ""
    port = dashboard_of(request).port
    try:
        experiment = drafts.read(values, visit.t, before)
        if before is None:
            await port.create(experiment, actor)
        else:
            await port.edit(key, experiment, actor)
    except drafts.FormFaults as faults:
        return await form.page(values, faults.by_field, status=422)
    except ValidationFailed as error:
        by_field, general = drafts.place(error)
        return await form.page(values, by_field, general, status=422)
    except Conflict as error:
        return await form.page(values, {"key": error.detail}, status=409)
    return visit.finish(RedirectResponse(url_of(values["key"].strip()), 303))


async def _draft(request: Request, key: str) -> RegisteredExperiment:
    found = await dashboard_of(request).port.get(key)
    if found.definition.status is not Status.DRAFT:
        raise Conflict(f"{key} is {found.definition.status}; what runs is changed by a new phase")
    return found


def _label(visit: Visit, name: str) -> str:
    part, _, number = name.rpartition("_")
    if not number.isdecimal():
        return visit.t(f"form.{name}")
    if name == "variant_1":
        return visit.t("form.variant_1")
    return visit.t("form.variant_name" if part == "variant" else f"form.{part}", number=number)
