"""A RegisteredExperiment from the fields of the form and back, and the registry's faults back to those fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from zoneinfo import available_timezones

from services.recommender.catalogue.columns import format_time, parse_time
from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.definitions import Experiment, HoldOut, Variant
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from shared.errors import ValidationFailed

VARIANTS = 4
"""Rows of an empty form; a draft written through the API may have up to MOST_VARIANTS, each with a row then."""
MOST_VARIANTS = 20
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DEFAULTS: Mapping[str, str] = {
    "key": "",
    "hypothesis": "",
    "owner": "",
    "unit": "user",
    "fallback_unit": "",
    "scenes": "",
    "targeting": "",
    "segment_by": "",
    "coverage": "1",
    "primary": "ctr",
    "secondary": "",
    "guardrails": "",
    "effect": "0.05",
    "time_zone": "UTC",
    "currency": "USD",
    "alpha": "0.05",
    "power": "0.8",
    "correction": "holm",
    "seed": "",
    "namespace": "",
    "namespace_range": "",
    "forced": "",
    "holdout": "",
    "holdout_ends": "",
    **{f"{part}_{number}": "" for number in range(1, MOST_VARIANTS + 1) for part in ("variant", "weight", "settings")},
    "variant_1": "control",
    "weight_1": "0.5",
    "settings_1": "{}",
    "variant_2": "treatment",
    "weight_2": "0.5",
    "settings_2": "{}",
}
HOLDOUT_DEFAULTS: Mapping[str, str] = {
    **DEFAULTS,
    "holdout": "all",
    "variant_1": "held_out",
    "weight_1": "0.05",
    "variant_2": "rest",
    "weight_2": "0.95",
}
HOLDOUTS = ("", "all", "namespace")


class FormFaults(Exception):
    """`by_field`: {field: what is wrong, in the reader's language}."""

    def __init__(self, by_field: Mapping[str, str]) -> None:
        super().__init__(", ".join(by_field))
        self.by_field = by_field


def read(values: Mapping[str, str], t: Catalogue, before: RegisteredExperiment | None = None) -> RegisteredExperiment:
    """`before`: the draft that is edited, for what the form has no field for. Raises FormFaults with every field that
    cannot be read, ValidationFailed for what does not fit together."""
    form = _Form(values, t)
    variants = form.variants()
    numbers = {name: form.number(name) for name in ("coverage", "alpha", "effect", "power")}
    key = form.required("key")
    if key and not _KEY.fullmatch(key):
        form.fault("key", "key")
    time_zone = form.text("time_zone") or "UTC"
    if time_zone not in available_timezones():
        form.fault("time_zone", "time_zone")
    plan = Plan(
        primary=form.required("primary"),
        secondary=form.words("secondary"),
        guardrails=form.guardrails(),
        alpha=numbers["alpha"],
        correction=form.text("correction"),
        effect=numbers["effect"],
        power=numbers["power"],
    )
    about = {"owner": form.required("owner"), "hypothesis": form.required("hypothesis")}
    holdout = form.holdout()
    namespace = form.namespace() if holdout is None else None
    forced = form.forced()
    if form.faults:
        raise FormFaults(form.faults)
    return RegisteredExperiment(
        definition=Experiment(
            key=key,
            variants=variants,
            unit=form.text("unit"),
            fallback_unit=form.text("fallback_unit") or None,
            coverage=numbers["coverage"],
            seed=form.text("seed"),
            hash_version=2 if before is None else before.definition.hash_version,
            namespace=namespace,
            forced=forced,
            holdout=holdout,
        ),
        owner=about["owner"],
        hypothesis=about["hypothesis"],
        plan=plan,
        scenes=form.words("scenes"),
        targeting=form.text("targeting") or None,
        segment_by=form.text("segment_by") or None,
        time_zone=time_zone,
        currency=form.text("currency").upper() or "USD",
    )


def rows_of(values: Mapping[str, str]) -> int:
    """Variants that the form shows; a holdout has two."""
    least = 2 if values["holdout"] else VARIANTS
    named = [number for number in range(1, MOST_VARIANTS + 1) if values[f"variant_{number}"]]
    return max([least, *named])


def write(experiment: RegisteredExperiment) -> dict[str, str]:
    """The fields that `read` makes this experiment of."""
    definition, plan = experiment.definition, experiment.plan
    space, holdout = definition.namespace, definition.holdout
    values = {
        **dict.fromkeys(DEFAULTS, ""),
        "key": definition.key,
        "hypothesis": experiment.hypothesis,
        "owner": experiment.owner,
        "unit": definition.unit,
        "fallback_unit": definition.fallback_unit or "",
        "scenes": ", ".join(experiment.scenes),
        "targeting": experiment.targeting or "",
        "segment_by": experiment.segment_by or "",
        "coverage": repr(definition.coverage),
        "primary": plan.primary,
        "secondary": ", ".join(plan.secondary),
        "guardrails": "\n".join(f"{metric} = {margin!r}" for metric, margin in plan.guardrails.items()),
        "effect": repr(plan.effect),
        "time_zone": experiment.time_zone,
        "currency": experiment.currency,
        "alpha": repr(plan.alpha),
        "power": repr(plan.power),
        "correction": plan.correction,
        "seed": definition.seed,
        "namespace": "" if space is None else space.key,
        "namespace_range": "" if space is None else f"{space.start!r} {space.end!r}",
        "forced": "\n".join(f"{value} = {variant}" for value, variant in definition.forced.items()),
    }
    if holdout is not None:
        values |= {"holdout": "all" if holdout.namespace is None else "namespace", "namespace": holdout.namespace or ""}
        values["holdout_ends"] = "" if holdout.ends_at_us is None else format_time(holdout.ends_at_us)
    for number, variant in enumerate(definition.variants, 1):
        settings = json.dumps(dict(variant.settings), ensure_ascii=False)
        values |= {f"variant_{number}": variant.key, f"weight_{number}": repr(variant.weight)}
        values[f"settings_{number}"] = settings
    return values


def place(error: ValidationFailed) -> tuple[dict[str, str], list[str]]:
    """The registry's faults by field, and those that are of no field of the form."""
    by_field: dict[str, str] = {}
    general: list[str] = []
    for fault in error.errors:
        steps = fault.pointer.strip("/").split("/")
        field = _field(steps)
        if field is None:
            general.append(fault.message)
        else:
            by_field.setdefault(field, fault.message)
    return by_field, general or ([] if by_field else [error.detail])


def _field(steps: list[str]) -> str | None:
    head, *rest = steps
    if head == "plan" and rest:
        head = rest[0]
    if head == "holdout":
        return "holdout_ends" if rest == ["ends_at"] else "holdout"
    if head == "weights":
        return "weight_1"
    if head == "variants":
        part = {"key": "variant", "weight": "weight", "settings": "settings"}.get(rest[1] if len(rest) > 1 else "")
        if part and rest[0].isdecimal() and int(rest[0]) < MOST_VARIANTS:
            return f"{part}_{int(rest[0]) + 1}"
        return "variants"
    return head if head in DEFAULTS else None


class _Form:
    """Reads fields and collects what is wrong, so that all of it is shown at once."""

    def __init__(self, values: Mapping[str, str], t: Catalogue) -> None:
        self._values = values
        self._t = t
        self.faults: dict[str, str] = {}

    def fault(self, field: str, code: str) -> None:
        self.faults.setdefault(field, self._t(f"form.error.{code}"))

    def text(self, field: str) -> str:
        return self._values[field].strip()

    def required(self, field: str) -> str:
        if not self.text(field):
            self.fault(field, "empty")
        return self.text(field)

    def words(self, field: str) -> tuple[str, ...]:
        """Separated by commas, also the Chinese ones."""
        return tuple(word.strip() for word in re.split("[,，、]", self.text(field)) if word.strip())

    def number(self, field: str) -> float:
        try:
            return float(self.text(field))
        except ValueError:
            self.fault(field, "number")
            return 0.0

    def guardrails(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in filter(None, map(str.strip, self.text("guardrails").splitlines())):
            metric, _, margin = line.partition("=")
            try:
                found[metric.strip()] = float(margin)
            except ValueError:
                self.fault("guardrails", "guardrail")
        return found

    def namespace(self) -> Namespace | None:
        if not self.text("namespace"):
            return None
        try:
            start, end = map(float, self.text("namespace_range").split())
        except ValueError:
            self.fault("namespace_range", "range")
            return None
        return Namespace(self.text("namespace"), start, end)

    def holdout(self) -> HoldOut | None:
        kind = self.text("holdout")
        if kind not in ("all", "namespace"):
            return None
        if kind == "namespace" and not self.text("namespace"):
            self.fault("namespace", "holdout_namespace")
        ends = self.text("holdout_ends")
        ends_at_us = parse_time(ends) if ends else None
        if ends and ends_at_us is None:
            self.fault("holdout_ends", "time")
        return HoldOut(self.text("namespace") if kind == "namespace" else None, ends_at_us)

    def forced(self) -> dict[str, str]:
        """The variant is behind the last sign: an id may hold one."""
        found: dict[str, str] = {}
        for line in filter(None, map(str.strip, self.text("forced").splitlines())):
            value, sign, variant = (part.strip() for part in line.rpartition("="))
            if not (value and sign and variant):
                self.fault("forced", "forced")
            found[value] = variant
        return found

    def variants(self) -> tuple[Variant, ...]:
        numbers = [n for n in range(1, MOST_VARIANTS + 1) if n <= 2 or self.text(f"variant_{n}")]
        return tuple(
            Variant(self.required(f"variant_{n}"), self.number(f"weight_{n}"), self._settings(f"settings_{n}"))
            for n in numbers
        )

    def _settings(self, field: str) -> dict[str, Any]:
        try:
            value = json.loads(self.text(field) or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            self.fault(field, "json")
            return {}
        return value
