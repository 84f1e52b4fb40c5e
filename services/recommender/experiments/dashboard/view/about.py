"""An experiment's own facts: its line in the list, what it is, and what may be done with it now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

import orjson

from services.recommender.experiments.dashboard.formats import Formats
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.dashboard.ports import ExperimentRow
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import Health

STATUS_KINDS = {Status.DRAFT: "idle", Status.RUNNING: "live", Status.STOPPED: "done"}
HEALTH_KINDS = {Health.NO_DATA: "idle", Health.HEALTHY: "good", Health.BLOCKED: "bad"}


@dataclass(frozen=True, slots=True)
class RowView:
    key: str
    url: str
    hypothesis: str
    owner: str
    status: str
    status_kind: str
    health: str
    health_kind: str
    units: str
    simulated: bool
    shipped: str | None
    holdout: bool
    started_at_us: int | None
    as_of_us: int | None
    formats: Formats


@dataclass(frozen=True, slots=True)
class HeadView:
    key: str
    url: str
    hypothesis: str
    status: str
    status_kind: str


@dataclass(frozen=True, slots=True)
class ActionView:
    url: str
    words: str
    kind: str


@dataclass(frozen=True, slots=True)
class VariantView:
    key: str
    weight: str
    settings: str
    state: str
    kill_url: str | None


def url_of(key: str) -> str:
    return f"/dashboard/experiments/{quote(key, safe='')}"


def compact(value: object) -> str:
    return orjson.dumps(value, default=str).decode()


def formats_of(experiment: RegisteredExperiment, language: str) -> Formats:
    return Formats(language, experiment.time_zone, experiment.currency)


def row_view(row: ExperimentRow, language: str) -> RowView:
    experiment = row.experiment
    definition = experiment.definition
    formats = formats_of(experiment, language)
    return RowView(
        key=definition.key,
        url=url_of(definition.key),
        hypothesis=experiment.hypothesis,
        owner=experiment.owner,
        status=definition.status,
        status_kind=STATUS_KINDS[definition.status],
        health=row.health,
        health_kind=HEALTH_KINDS[row.health],
        units=formats.count(row.units),
        simulated=row.simulated,
        shipped=experiment.shipped,
        holdout=definition.holdout is not None,
        started_at_us=experiment.started_at_us,
        as_of_us=row.as_of_us,
        formats=formats,
    )


def head_view(experiment: RegisteredExperiment) -> HeadView:
    definition = experiment.definition
    status = definition.status
    return HeadView(definition.key, url_of(definition.key), experiment.hypothesis, status, STATUS_KINDS[status])


def possible_actions(experiment: RegisteredExperiment) -> list[str]:
    """In the order of the page. The registry decides; this only spares people a button that it would refuse."""
    status, holdout = experiment.definition.status, experiment.definition.holdout is not None
    actions = {
        Status.DRAFT: ["start", "edit"],
        Status.RUNNING: ["stop", "ship", "phase"],
        Status.STOPPED: ["ship"],
    }[status]
    if holdout:
        actions = [name for name in actions if name != "ship"]
    return [*actions, "roll_back"] if experiment.shipped else actions


def action_views(experiment: RegisteredExperiment, t: Catalogue) -> list[ActionView]:
    kinds = {"start": "primary", "ship": "primary", "stop": "danger", "roll_back": "danger", "edit": "", "phase": ""}
    base = url_of(experiment.definition.key)
    return [ActionView(f"{base}/{name}", t(f"action.{name}"), kinds[name]) for name in possible_actions(experiment)]


def variant_views(experiment: RegisteredExperiment, t: Catalogue, f: Formats, *, may_kill: bool) -> list[VariantView]:
    base = url_of(experiment.definition.key)
    running = experiment.definition.status is Status.RUNNING and experiment.definition.holdout is None
    views = []
    for place, variant in enumerate(experiment.definition.variants):
        killable = may_kill and running and place > 0 and not variant.killed
        views.append(
            VariantView(
                key=variant.key,
                weight=f.share(variant.weight),
                settings=compact(dict(variant.settings)),
                state=t("variant.killed") if variant.killed else t("variant.live"),
                kill_url=f"{base}/kill?variant={quote(variant.key, safe='')}" if killable else None,
            )
        )
    return views


def about(experiment: RegisteredExperiment, t: Catalogue, f: Formats) -> list[tuple[str, str]]:
    """Names and values of the definition list."""
    return [(t(f"about.{name}"), value or t("about.nothing")) for name, value in _facts(experiment, t, f)]


def _facts(experiment: RegisteredExperiment, t: Catalogue, f: Formats) -> Iterable[tuple[str, str]]:
    definition = experiment.definition
    unit = definition.unit
    if definition.fallback_unit:
        unit = t("about.unit_with", unit=unit, fallback=definition.fallback_unit)
    yield "owner", experiment.owner
    yield "unit", unit
    yield "coverage", f.share(definition.coverage)
    yield "scenes", ", ".join(experiment.scenes) or t("about.all_scenes")
    yield "targeting", experiment.targeting or t("about.everybody")
    yield "segment_by", experiment.segment_by or ""
    space = definition.namespace
    yield "namespace", "" if space is None else f"{space.key} [{space.start:g}, {space.end:g})"
    if definition.holdout is not None:
        yield "holdout", definition.holdout.namespace or t("about.holdout_all")
        yield "holdout_ends", f.moment(definition.holdout.ends_at_us)
    elif definition.forced:
        yield "forced", ", ".join(f"{value}: {variant}" for value, variant in definition.forced.items())
    yield "seed", definition.hash_seed
    yield "hash_version", str(definition.hash_version)
    yield "time_zone", experiment.time_zone
    yield "currency", experiment.currency
    yield from _plan(experiment, t, f)
    yield "created", f.moment(experiment.created_at_us or None)
    yield "updated", f.moment(experiment.updated_at_us or None)
    yield "started", f.moment(experiment.started_at_us)
    yield "stopped", f.moment(experiment.stopped_at_us)
    yield "shipped", experiment.shipped or ""


def _plan(experiment: RegisteredExperiment, t: Catalogue, f: Formats) -> Iterable[tuple[str, str]]:
    plan = experiment.plan

    def title(metric: str) -> str:
        return t.known(f"metric.{metric}", metric)

    yield "primary", title(plan.primary)
    yield "secondary", ", ".join(title(metric) for metric in plan.secondary)
    yield "guardrails", ", ".join(f"{title(metric)}: {f.share(margin)}" for metric, margin in plan.guardrails.items())
    yield "effect", f.lift(plan.effect)
    yield "power", f.share(plan.power, 0)
