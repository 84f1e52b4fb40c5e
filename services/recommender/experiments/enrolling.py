"""One request in all experiments of its scene. Pure.

Targeting and sticky buckets may need what Redis knows of the user; where that is not known (Redis is away, or the
request reads no history) those experiments leave the request out: a unit that meets a variant by a guess would be
compared, or found in two variants, later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.recommender.experiments.definitions import Experiment, Status
from services.recommender.experiments.enrolment import Assignment, assign, everyone
from services.recommender.experiments.holdouts import Holdout
from services.recommender.experiments.live import CONTEXT, LiveExperiment, SceneExperiments
from services.recommender.experiments.sticky import Buckets
from shared.contracts.variant_release import VariantRelease

SEGMENT_LENGTH = 64
SIMULATED = "silkrec_simulated"
"""A request whose context has it as `true` was made by the simulator, and every page that it fed says so."""


@dataclass(frozen=True, slots=True)
class Known:
    """`user` (profile properties and `segments`) and `buckets` are None when they could not be read. `held_by`: the
    holdouts that hold these units out. `loaded`: the variants' releases that can be served now."""

    units: Mapping[str, str]
    context: Mapping[str, Any]
    now_us: int
    user: Mapping[str, Any] | None = None
    buckets: Buckets | None = None
    held_by: Sequence[Holdout] = ()
    loaded: Collection[VariantRelease] = ()


def enrol(scene: SceneExperiments, known: Known) -> tuple[Assignment, ...]:
    """Only those with a variant; 10 to 20 µs an experiment."""
    found = []
    for live in scene.experiments:
        if live.definition.holdout is not None and Holdout(live.definition).is_over(known.now_us):
            continue
        if not live.releases.issubset(known.loaded):
            continue  # whoever met the control meanwhile would have no counterpart
        assignment = _one(live, known)
        if assignment is not None and assignment.variant is not None:
            found.append(assignment)
    return tuple(found)


def waiting(scene: SceneExperiments, loaded: Collection[VariantRelease]) -> tuple[str, ...]:
    """Running experiments that leave everybody out, because a release of theirs cannot be served."""
    if scene.releases.issubset(loaded):
        return ()
    return tuple(
        live.definition.key
        for live in scene.experiments
        if live.definition.status is Status.RUNNING and not live.releases.issubset(loaded)
    )


def _one(live: LiveExperiment, known: Known) -> Assignment | None:
    if live.keeps_buckets and known.buckets is None:
        return None
    buckets = known.buckets if live.keeps_buckets else None
    targeting = live.targeting
    if targeting is None:
        return assign(live.definition, known.units, targeted=everyone, sticky=buckets, held_by=known.held_by)
    user = known.user
    if user is None and targeting.reads_user:
        return None

    def targeted(_experiment: Experiment) -> bool:
        return targeting.holds(user or {}, known.context, known.now_us)

    return assign(live.definition, known.units, targeted=targeted, sticky=buckets, held_by=known.held_by)


def segment_of(live: LiveExperiment, known: Known) -> str:
    """The value of `segment_by`, at most SEGMENT_LENGTH characters; empty when there is none."""
    name = live.segment_by
    if name is None:
        return ""
    of_context = name.startswith(CONTEXT)
    value = known.context.get(name[len(CONTEXT) :]) if of_context else (known.user or {}).get(name)
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = ",".join(sorted(str(entry) for entry in value))
    elif isinstance(value, bool):
        value = "true" if value else "false"
    return str(value)[:SEGMENT_LENGTH]


def exposures(
    scene: SceneExperiments, assignments: tuple[Assignment, ...], known: Known, user_key: str
) -> list[dict[str, Any]]:
    """What the journal keeps: those that are data. `unit` is the user_key, by which events are found, whatever kind of
    id was hashed: a signed-in user whose two devices met two variants is then seen as the multi-variant unit it is."""
    by_key = {live.definition.key: live for live in scene.experiments}
    simulated = known.context.get(SIMULATED) is True
    return [
        {
            "experiment": one.experiment,
            "phase": one.phase,
            "unit": user_key,
            "variant": one.variant,
            "segment": segment_of(by_key[one.experiment], known),
            "simulated": simulated,
        }
        for one in assignments
        if one.is_data
    ]
