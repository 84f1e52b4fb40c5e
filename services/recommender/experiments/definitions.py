"""What an experiment is, and the changes that it survives: new weights, a killed variant, an end.

A definition is frozen and checked when it is made; each change gives a new one. New weights move units between
variants, so they start a new phase, analysed on its own; killing a variant moves nobody else, so it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from services.recommender.experiments.assignment import Namespace, Range, bucket_ranges
from services.recommender.experiments.refusals import refuse
from shared.errors import FieldError, ValidationFailed


class Status(StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Variant:
    """`weight` is its share of the enrolled units; `settings` what it changes of a request (model, index, diversity…).
    A `killed` one keeps its range, so that its units leave and nobody else moves."""

    key: str
    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    killed: bool = False


@dataclass(frozen=True, slots=True)
class HoldOut:
    """What the units of a holdout's first variant do not meet: experiments of one namespace, or (None) any at all.
    It ends at `ends_at_us`, or when it is stopped before."""

    namespace: str | None = None
    ends_at_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The first variant is the control; of a holdout (`holdouts.py`) it is the units that are held out.

    `unit` names the id that is hashed ("user"), `fallback_unit` the one for requests without it ("visitor"), which
    counts only where sticky buckets are kept, as in GrowthBook: without them, signing in would change the variant.
    `coverage` (0 to 1) of all units are enrolled. `phase` counts from 0; units that met the experiment in a phase
    before `first_open_phase` are left out. `forced` maps a unit's value to a variant for trying it out. `seed` empty:
    the key. Raises ValidationFailed with every fault at once.
    """

    key: str
    variants: tuple[Variant, ...]
    status: Status = Status.DRAFT
    unit: str = "user"
    fallback_unit: str | None = None
    coverage: float = 1.0
    seed: str = ""
    hash_version: int = 2
    namespace: Namespace | None = None
    phase: int = 0
    first_open_phase: int = 0
    forced: Mapping[str, str] = field(default_factory=dict)
    holdout: HoldOut | None = None
    ranges: tuple[Range, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        faults = [FieldError(pointer, message) for pointer, message in _faults(self)]
        if faults:
            details = "; ".join(f"{fault.pointer} {fault.message}" for fault in faults)
            raise ValidationFailed(f"experiment {self.key!r}: {details}", errors=faults)
        ranges = bucket_ranges(self.coverage, [variant.weight for variant in self.variants])
        object.__setattr__(self, "ranges", ranges)  # worked out once, not for every request

    @property
    def control(self) -> Variant:
        return self.variants[0]

    @property
    def hash_seed(self) -> str:
        return self.seed or self.key

    def position(self, variant_key: str) -> int:
        """Of the variant; -1 when there is none of that name."""
        return next((place for place, variant in enumerate(self.variants) if variant.key == variant_key), -1)


def next_phase(
    experiment: Experiment,
    weights: Sequence[float] | None = None,
    coverage: float | None = None,
    *,
    seed: str | None = None,
    keep_out_earlier: bool = False,
) -> Experiment:
    """New weights or coverage, in a new phase. `seed`: another one draws everybody again; the same one leaves every
    unit whose bucket stays in its variant's range. `keep_out_earlier` leaves out all who met an earlier phase."""
    phase = experiment.phase + 1
    if weights is not None and len(weights) != len(experiment.variants):
        raise refuse("weights", f"has {len(weights)} numbers; give one a variant, {len(experiment.variants)} in all")
    if weights is None:
        weights = [variant.weight for variant in experiment.variants]
    return replace(
        experiment,
        variants=tuple(replace(one, weight=weight) for one, weight in zip(experiment.variants, weights, strict=True)),
        coverage=experiment.coverage if coverage is None else coverage,
        seed=experiment.seed if seed is None else seed,
        phase=phase,
        first_open_phase=phase if keep_out_earlier else experiment.first_open_phase,
    )


def kill_variant(experiment: Experiment, variant_key: str) -> Experiment:
    """Its units fall back to what they would get without the experiment and stay out; all others keep their variant."""
    position = experiment.position(variant_key)
    if position < 0:
        names = ", ".join(variant.key for variant in experiment.variants)
        raise refuse("variant", f"{variant_key!r} is none of this experiment's variants; they are {names}")
    if position == 0:
        raise refuse("variant", f"{variant_key!r} is the control, and without it nothing compares; stop the experiment")
    killed = replace(experiment.variants[position], killed=True)
    return replace(experiment, variants=(*experiment.variants[:position], killed, *experiment.variants[position + 1 :]))


def may_share_units(one: Experiment, other: Experiment) -> bool:
    """False where the namespaces keep the two apart. Units of different kinds (user, visitor) always may."""
    if one.namespace is None or other.namespace is None or one.namespace.key != other.namespace.key:
        return True
    if (one.unit, one.fallback_unit) != (other.unit, other.fallback_unit):
        return True
    return one.namespace.start < other.namespace.end and other.namespace.start < one.namespace.end


def conflicting_settings(one: Experiment, other: Experiment) -> frozenset[str]:
    """Settings that both change for units that they may share: put both into one namespace, or run one later."""
    if one.key == other.key or not may_share_units(one, other):
        return frozenset()
    return _settings(one) & _settings(other)


def _settings(experiment: Experiment) -> frozenset[str]:
    return frozenset(name for variant in experiment.variants for name in variant.settings)


def _faults(experiment: Experiment) -> Iterator[tuple[str, str]]:
    if not experiment.key:
        yield "/key", "is empty; give the experiment a name"
    if experiment.hash_version not in (1, 2):
        yield "/hash_version", f"is {experiment.hash_version}; use 2, or 1 for an experiment begun on an old SDK"
    if not 0 <= experiment.coverage <= 1:
        yield "/coverage", f"is {experiment.coverage}; give the share of units to enrol, from 0 to 1"
    if not experiment.unit:
        yield "/unit", "is empty; name the id that is hashed, such as user"
    if experiment.fallback_unit == experiment.unit:
        yield "/fallback_unit", f"is the unit itself, {experiment.unit!r}; name another id or leave it out"
    if not 0 <= experiment.first_open_phase <= experiment.phase:
        yield "/first_open_phase", f"is {experiment.first_open_phase}; it lies from 0 to the phase, {experiment.phase}"
    if (space := experiment.namespace) is not None and not (space.key and 0 <= space.start < space.end <= 1):
        yield "/namespace", f"is {tuple(space)}; give a name and a range with 0 <= start < end <= 1"
    yield from _variant_faults(experiment)
    if experiment.holdout is not None:
        yield from _holdout_faults(experiment)


def _holdout_faults(experiment: Experiment) -> Iterator[tuple[str, str]]:
    if len(experiment.variants) != 2:
        yield "/variants", f"are {len(experiment.variants)}; a holdout has two: who is held out, and the rest"
    for place, variant in enumerate(experiment.variants):
        if variant.settings:
            yield f"/variants/{place}/settings", "are of no use to a holdout, which changes nothing of a request"
    for name in ("namespace", "fallback_unit", "forced"):
        if getattr(experiment, name):
            yield f"/{name}", "is of no use to a holdout, which holds out by the hash of its unit alone"


def _variant_faults(experiment: Experiment) -> Iterator[tuple[str, str]]:
    variants = experiment.variants
    if len(variants) < 2:
        yield "/variants", f"are {len(variants)}; a comparison needs a control and at least one more"
        return
    keys = [variant.key for variant in variants]
    if "" in keys or len(set(keys)) < len(keys):
        yield "/variants", f"are called {keys}; give each a name of its own"
    weights = [variant.weight for variant in variants]
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        yield "/weights", f"are {weights}; each is a share, 0 or more"
    elif not 0.99 <= sum(weights) <= 1.01:
        yield "/weights", f"sum to {sum(weights):g}; scale them to sum to 1"
    for variant_key in sorted(set(experiment.forced.values()) - set(keys)):
        yield "/forced", f"names {variant_key!r}, which is no variant; the variants are {keys}"
