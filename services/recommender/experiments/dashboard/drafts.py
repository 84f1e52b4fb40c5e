"""A RegisteredExperiment from the fields of the create form, and the registry's faults back to those fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from zoneinfo import available_timezones

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.dashboard.i18n import Catalogue
from services.recommender.experiments.definitions import Experiment, Variant
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from shared.errors import ValidationFailed

VARIANTS = 4
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
    "variant_1": "control",
    "weight_1": "0.5",
    "settings_1": "{}",
    "variant_2": "treatment",
    "weight_2": "0.5",
    "settings_2": "{}",
    "variant_3": "",
    "weight_3": "",
    "settings_3": "",
    "variant_4": "",
    "weight_4": "",
    "settings_4": "",
}


class FormFaults(Exception):
    """`by_field`: {field: what is wrong, in the reader's language}."""

    def __init__(self, by_field: Mapping[str, str]) -> None:
        super().__init__(", ".join(by_field))
        self.by_field = by_field


def read(values: Mapping[str, str], t: Catalogue) -> RegisteredExperiment:
    """Raises FormFaults with every field that cannot be read, ValidationFailed for what does not fit together."""
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
    namespace = form.namespace()
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
            namespace=namespace,
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
    if head == "weights":
        return "weight_1"
    if head == "variants":
        part = {"key": "variant", "weight": "weight", "settings": "settings"}.get(rest[1] if len(rest) > 1 else "")
        if part and rest[0].isdecimal() and int(rest[0]) < VARIANTS:
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

    def variants(self) -> tuple[Variant, ...]:
        numbers = [n for n in range(1, VARIANTS + 1) if n <= 2 or self.text(f"variant_{n}")]
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
