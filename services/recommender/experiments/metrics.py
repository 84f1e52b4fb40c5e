"""Metrics: what is summed of a unit's events, and what the sum is called. Built-in ones, and a team's own from a file.

    metrics:
      - key: add_to_cart_rate
        title: Baskets per visitor
        kind: proportion                   # mean, proportion or ratio
        numerator: {event_types: [add_to_cart], of: count}
        window_days: 7

A unit's events count from its first exposure on; units without any are zeros. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.recommender.experiments.refusals import refuse
from services.recommender.experiments.registered import Plan
from shared.errors import FieldError, ValidationFailed

Unit = Literal["share", "per_unit", "currency", "seconds", "ms", "count"]
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
FILE = "metrics.yaml"


class Kind(StrEnum):
    MEAN = "mean"
    PROPORTION = "proportion"
    RATIO = "ratio"


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Amount(_Declared):
    """`of`: count is events, sum is Σ event_value, seen is the items of impressions (a list's length, else 1 for an
    event with an item). Where no unit of the experiment reports an impression, `seen` is the items that were served."""

    event_types: tuple[str, ...] = Field(min_length=1)
    of: Literal["count", "sum", "seen"] = "count"


class Metric(_Declared):
    """`window_days`: only events of so many times 24 hours after the unit's first exposure. `winsorise`: the percentile
    (0 to 1) of units above zero that caps a mean. `cuped`: less noise by what units did before."""

    key: Key
    title: str = ""
    kind: Kind = Kind.MEAN
    numerator: Amount
    denominator: Amount | None = None
    window_days: int | None = Field(default=None, ge=1, le=365)
    winsorise: float | None = Field(default=None, gt=0, lt=1)
    higher_is_better: bool = True
    unit: Unit = "per_unit"
    cuped: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind is Kind.RATIO) != (self.denominator is not None):
            raise ValueError("a ratio has a denominator, and only a ratio has one")
        if self.winsorise is not None and self.kind is not Kind.MEAN:
            raise ValueError("winsorise caps means only; leave it out")
        return self

    @property
    def event_types(self) -> tuple[str, ...]:
        return self.numerator.event_types + (self.denominator.event_types if self.denominator else ())


CTR = Metric(
    key="ctr",
    kind=Kind.RATIO,
    numerator=Amount(event_types=("click",)),
    denominator=Amount(event_types=("impression",), of="seen"),
    unit="share",
)
BUILT_IN = (
    CTR,
    Metric(
        key="conversion",
        kind=Kind.PROPORTION,
        numerator=Amount(event_types=("purchase",)),
        window_days=7,
        unit="share",
    ),
    Metric(
        key="revenue_per_unit",
        numerator=Amount(event_types=("purchase",), of="sum"),
        winsorise=0.999,
        unit="currency",
    ),
    Metric(
        key="watch_time_per_unit", numerator=Amount(event_types=("watch",), of="sum"), winsorise=0.999, unit="seconds"
    ),
)


def parse(raw: Any) -> dict[str, Metric]:
    """The built-in metrics with those of a `metrics:` list added, or put in their place by key. Raises
    ValidationFailed with every fault at once."""
    known = {metric.key: metric for metric in BUILT_IN}
    listed = raw.get("metrics", []) if isinstance(raw, Mapping) else raw
    if not isinstance(listed, list):
        raise refuse("metrics", "is no list; write one metric an entry, each with a key")
    faults: list[FieldError] = []
    own: set[str] = set()
    for place, entry in enumerate(listed):
        try:
            metric = Metric.model_validate(entry)
        except ValidationError as error:
            faults += [_fault(place, one) for one in error.errors()]
            continue
        if metric.key in own:
            faults.append(FieldError(f"/metrics/{place}/key", f"{metric.key!r} is there twice"))
        own.add(metric.key)
        known[metric.key] = metric
    if faults:
        raise ValidationFailed("; ".join(f"{one.pointer} {one.message}" for one in faults), errors=faults)
    return known


def load(path: Path) -> dict[str, Metric]:
    """Of a metrics file; without one, the built-in metrics."""
    if not path.is_file():
        return parse([])
    try:
        return parse(yaml.safe_load(path.read_text()) or [])
    except yaml.YAMLError as error:
        raise refuse("metrics", f"in {path.name} are no YAML: {str(error).splitlines()[0]}") from error


def of_plan(plan: Plan, known: Mapping[str, Metric], event_types: Sequence[str]) -> tuple[Metric, ...]:
    """The plan's metrics, the primary one first. Raises ValidationFailed for one that is not known, and for one of an
    event type that is not declared."""
    keys = list(dict.fromkeys((plan.primary, *plan.secondary, *plan.guardrails)))
    chosen = []
    for key in keys:
        if key not in known:
            raise refuse("plan", f"names the metric {key!r}; known are {', '.join(sorted(known))}")
        if missing := sorted(set(known[key].event_types) - set(event_types)):
            raise refuse("plan", f"names {key!r}, a metric of {', '.join(missing)}; declare that in event_types first")
        chosen.append(known[key])
    return tuple(chosen)


def _fault(place: int, error: Any) -> FieldError:
    inside = "".join(f"/{part}" for part in error["loc"])
    return FieldError(f"/metrics/{place}{inside}", str(error["msg"]).removeprefix("Value error, "))
