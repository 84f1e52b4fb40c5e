"""An experiment as JSON: one shape for bodies, for the create form and for `experiments.document`.

`parse` and `dump` are exact opposites. What the database keeps beside the document (status, times) and what deployments
say (shipped) is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.recommender.catalogue.columns import format_time, parse_time
from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.definitions import Experiment, HoldOut, Status, Variant
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from shared.errors import FieldError, ValidationFailed

FORMAT = 1
KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Key = Annotated[str, Field(pattern=KEY_PATTERN, description="1 to 64 letters, digits, _ . -")]
Text = Annotated[str, Field(max_length=4000)]
Short = Annotated[str, Field(min_length=1, max_length=128)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamespaceBody(Strict):
    key: Short
    start: float = Field(ge=0, le=1)
    end: float = Field(ge=0, le=1)


class HoldOutBody(Strict):
    """Units of the first variant meet no experiment of `namespace`, or none at all, nor what those ship meanwhile."""

    namespace: Short | None = None
    ends_at: str | None = Field(None, description="RFC 3339; without it, when it is stopped")


class VariantBody(Strict):
    key: Key
    weight: float = Field(ge=0, le=1, description="share of the enrolled units")
    settings: dict[str, Any] = Field({}, max_length=32, description="what it changes of a request")


class PlanBody(Strict):
    primary: Short = "ctr"
    secondary: list[Short] = Field([], max_length=50)
    guardrails: dict[Short, float] = Field({}, max_length=50, description="metric: accepted harm, a fraction")
    alpha: float = Field(0.05, gt=0, lt=1)
    correction: Literal["holm", "benjamini_hochberg", "none"] = "holm"
    effect: float = Field(0.05, gt=0, description="smallest relative lift worth finding")
    power: float = Field(0.8, gt=0, lt=1)


class ExperimentBody(Strict):
    """The first variant is the control; of a holdout, who is held out."""

    key: Key
    owner: Short
    hypothesis: Text = Field(min_length=1)
    variants: list[VariantBody] = Field(min_length=2, max_length=20)
    plan: PlanBody = PlanBody()
    unit: Literal["user", "visitor"] = "user"
    fallback_unit: Literal["user", "visitor"] | None = Field(None, description="keeps sticky buckets in Redis")
    coverage: float = Field(1.0, ge=0, le=1)
    seed: str = Field("", max_length=128)
    hash_version: Literal[1, 2] = 2
    namespace: NamespaceBody | None = None
    forced: dict[str, Key] = Field({}, max_length=100, description="id of a unit: variant, for trying it out")
    holdout: HoldOutBody | None = Field(None, description="makes it a holdout: two variants without settings")
    scenes: list[Short] = Field([], max_length=100, description="empty: all")
    targeting: str | None = Field(None, min_length=1, max_length=4096, description="over user.… and context.…")
    segment_by: Short | None = Field(None, description="context.<name> or a user field; splits the results")
    time_zone: Short = "UTC"
    currency: str = Field("USD", pattern="^[A-Z]{3}$")

    def registered(self) -> RegisteredExperiment:
        """A draft. Raises ValidationFailed with every fault of the definition."""
        return _registered(self, phase=0, first_open_phase=0, killed=frozenset(), status=Status.DRAFT)


class _Stored(ExperimentBody):
    format: Literal[1]
    phase: int = Field(0, ge=0, le=32_767)
    first_open_phase: int = Field(0, ge=0)
    killed: list[str] = []


def parse(document: Mapping[str, Any], *, status: Status) -> RegisteredExperiment:
    """Raises ValidationFailed with JSON pointers, also for another format."""
    try:
        stored = _Stored.model_validate(dict(document))
    except ValidationError as error:
        faults = [FieldError(_pointer(one["loc"]), one["msg"], one["type"]) for one in error.errors()]
        details = "; ".join(f"{fault.pointer} {fault.message}" for fault in faults)
        raise ValidationFailed(f"the stored experiment cannot be read: {details}", errors=faults) from None
    return _registered(
        stored,
        phase=stored.phase,
        first_open_phase=stored.first_open_phase,
        killed=frozenset(stored.killed),
        status=status,
    )


def body_of(registered: RegisteredExperiment) -> dict[str, Any]:
    """What a person would send to make it: an ExperimentBody as JSON."""
    definition, plan, space = registered.definition, registered.plan, registered.definition.namespace
    holdout = definition.holdout
    return {
        "key": definition.key,
        "owner": registered.owner,
        "hypothesis": registered.hypothesis,
        "variants": [
            {"key": one.key, "weight": one.weight, "settings": dict(one.settings)} for one in definition.variants
        ],
        "plan": {
            "primary": plan.primary,
            "secondary": list(plan.secondary),
            "guardrails": dict(plan.guardrails),
            "alpha": plan.alpha,
            "correction": plan.correction,
            "effect": plan.effect,
            "power": plan.power,
        },
        "unit": definition.unit,
        "fallback_unit": definition.fallback_unit,
        "coverage": definition.coverage,
        "seed": definition.seed,
        "hash_version": definition.hash_version,
        "namespace": None if space is None else {"key": space.key, "start": space.start, "end": space.end},
        "forced": dict(definition.forced),
        "holdout": None if holdout is None else _holdout_body(holdout),
        "scenes": list(registered.scenes),
        "targeting": registered.targeting,
        "segment_by": registered.segment_by,
        "time_zone": registered.time_zone,
        "currency": registered.currency,
    }


def dump(registered: RegisteredExperiment) -> dict[str, Any]:
    definition = registered.definition
    return {
        "format": FORMAT,
        **body_of(registered),
        "phase": definition.phase,
        "first_open_phase": definition.first_open_phase,
        "killed": [one.key for one in definition.variants if one.killed],
    }


def _registered(
    body: ExperimentBody, *, phase: int, first_open_phase: int, killed: frozenset[str], status: Status
) -> RegisteredExperiment:
    space, plan = body.namespace, body.plan
    definition = Experiment(
        key=body.key,
        variants=tuple(Variant(one.key, one.weight, one.settings, one.key in killed) for one in body.variants),
        status=status,
        unit=body.unit,
        fallback_unit=body.fallback_unit,
        coverage=body.coverage,
        seed=body.seed,
        hash_version=body.hash_version,
        namespace=None if space is None else Namespace(space.key, space.start, space.end),
        phase=phase,
        first_open_phase=first_open_phase,
        forced=body.forced,
        holdout=None if body.holdout is None else _holdout(body.holdout),
    )
    return RegisteredExperiment(
        definition=definition,
        owner=body.owner,
        hypothesis=body.hypothesis,
        plan=Plan(
            primary=plan.primary,
            secondary=tuple(plan.secondary),
            guardrails=dict(plan.guardrails),
            alpha=plan.alpha,
            correction=plan.correction,
            effect=plan.effect,
            power=plan.power,
        ),
        scenes=tuple(body.scenes),
        targeting=body.targeting,
        segment_by=body.segment_by,
        time_zone=body.time_zone,
        currency=body.currency,
    )


def _holdout_body(holdout: HoldOut) -> dict[str, Any]:
    ends_at = None if holdout.ends_at_us is None else format_time(holdout.ends_at_us)
    return {"namespace": holdout.namespace, "ends_at": ends_at}


def _holdout(body: HoldOutBody) -> HoldOut:
    ends_at_us = None if body.ends_at is None else parse_time(body.ends_at)
    if body.ends_at is not None and ends_at_us is None:
        message = "must be RFC 3339 with a time zone, such as 2027-01-01T00:00:00Z"
        raise ValidationFailed(f"/holdout/ends_at {message}", errors=[FieldError("/holdout/ends_at", message)])
    return HoldOut(body.namespace, ends_at_us)


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
