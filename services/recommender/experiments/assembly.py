"""Puts a report together from what the aggregates hold. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.recommender.experiments.comparison import Asked, Sums, always_valid, bounds, cell, level, pair, results
from services.recommender.experiments.conclusion import conclude
from services.recommender.experiments.definitions import Experiment
from services.recommender.experiments.local_days import iso
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.report import (
    Alarm,
    DayCount,
    DayPoint,
    MetricResult,
    Report,
    Role,
    Segment,
    SlateQuality,
    VariantCount,
)
from services.recommender.experiments.slate_quality import merged, quality
from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.power import Plan as PowerPlan
from services.recommender.experiments.statistics.power import days_needed, units_needed
from services.recommender.experiments.statistics.sequential import DEFAULT_TUNING
from shared.errors import ValidationFailed

UNITS = "_units"
"""A row beside the metrics: n units, `new` of the day, `simulated` by the simulator."""
MOST_SEGMENTS = 20


class Row(Protocol):
    """Of `experiment_daily`."""

    day: int
    metric: str
    variant: str
    segment: str
    sums: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregates:
    """`items` {variant: slates that hold each item}, of the sampled slates; `quality` {variant: sums a day}."""

    as_of_us: int | None = None
    newest_us: int | None = None
    last_day: int = 0
    sums: Sequence[Row] = ()
    excluded: int = 0
    quality: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    items: Mapping[str, Sequence[int]] = field(default_factory=dict)
    latency_lifts: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def of(self, metric: str, day: int | None = None, segment: str | None = None) -> dict[str, dict[str, Any]]:
        """{variant: sums} of a day, the last one by default, over all segments or of one."""
        wanted = self.last_day if day is None else day
        total: dict[str, dict[str, Any]] = {}
        for row in self.sums:
            if row.metric == metric and row.day == wanted and segment in (None, row.segment):
                mine = total.setdefault(row.variant, {})
                for name, value in row.sums.items():
                    mine[name] = value if name in ("cap", "basis") else mine.get(name, 0) + value
        return total

    def units(self) -> dict[str, int]:
        return {variant: int(sums["n"]) for variant, sums in self.of(UNITS).items()}

    def days(self) -> list[int]:
        return sorted({row.day for row in self.sums})


def shares(definition: Experiment) -> dict[str, float]:
    """{variant: weight}; 0 where nobody new may be."""
    return {one.key: 0.0 if one.killed else one.weight for one in definition.variants}


def assemble(
    registered: RegisteredExperiment, metrics: Sequence[Metric], found: Aggregates, alarms: tuple[Alarm, ...]
) -> Report:
    """`metrics`: those of the plan, the primary first."""
    definition, plan = registered.definition, registered.plan
    variants = [one.key for one in definition.variants]
    asked = [_asked(one, registered, found) for one in metrics]
    tables = results(asked, variants, alpha=plan.alpha, correction=plan.correction)
    units = found.units()
    planned = _planned(registered, asked[0], units)
    simulated = any(sums.get("simulated") for sums in found.of(UNITS).values())
    return Report(
        experiment=definition.key,
        phase=definition.phase,
        as_of_us=found.as_of_us,
        simulated=simulated,
        control=variants[0],
        variants=_variants(definition, units),
        excluded_units=found.excluded,
        alarms=alarms,
        metrics=tables,
        quality=_quality(variants, found),
        exposures_by_day=_exposures(found),
        lift_by_day=_lifts(asked[0], tables[0], variants, found, plan.alpha),
        segment_by=registered.segment_by,
        segments=_segments(asked[0], variants, found, plan.alpha) if registered.segment_by else (),
        conclusion=conclude(
            alarms,
            tables,
            [one.key for one in definition.variants[1:] if not one.killed],
            units=sum(units.values()),
            planned_units=planned,
            days_left=_days_left(planned, found),
        ),
        alpha=plan.alpha,
        correction=plan.correction,
        holdout=definition.holdout is not None,
    )


def _asked(metric: Metric, registered: RegisteredExperiment, found: Aggregates) -> Asked:
    plan = registered.plan
    sums = found.of(metric.key)
    if metric.key == plan.primary:
        return Asked(metric, Role.PRIMARY, sums)
    if metric.key in plan.guardrails:
        return Asked(metric, Role.GUARDRAIL, sums, plan.guardrails[metric.key])
    return Asked(metric, Role.SECONDARY, sums)


def _variants(definition: Experiment, units: Mapping[str, int]) -> tuple[VariantCount, ...]:
    weights, total = shares(definition), sum(units.values())
    scale = math.fsum(weights.values()) or 1.0
    killed = {one.key for one in definition.variants if one.killed}
    return tuple(
        VariantCount(
            variant=name,
            units=units.get(name, 0),
            share=units.get(name, 0) / total if total else 0.0,
            expected_share=weights.get(name, 0.0) / scale,
            killed=name in killed,
        )
        for name in dict.fromkeys((*weights, *units))
    )


def _quality(variants: Sequence[str], found: Aggregates) -> tuple[SlateQuality, ...]:
    sums = {name: merged(found.quality.get(name, ())) for name in variants}
    sampled = [int(one["sampled"]) for one in sums.values() if one.get("sampled")]
    drawn = min(sampled) if sampled else 0
    return tuple(
        quality(
            name,
            one,
            found.items.get(name, ()),
            drawn if one.get("sampled") else 0,
            found.latency_lifts.get(name, ()),
        )
        for name, one in sums.items()
    )


def _exposures(found: Aggregates) -> tuple[DayCount, ...]:
    return tuple(
        DayCount(day=iso(day), variant=variant, units=int(sums["new"]))
        for day in found.days()
        for variant, sums in sorted(found.of(UNITS, day).items())
    )


def _lifts(
    primary: Asked, table: MetricResult, variants: Sequence[str], found: Aggregates, alpha: float
) -> tuple[DayPoint, ...]:
    points = []
    for day in found.days():
        sums = found.of(primary.metric.key, day)
        for name in variants[1:]:
            both = pair(primary.metric, sums.get(variants[0], {}), sums.get(name, {}))
            own = level(table, name, alpha)
            always = always_valid(both, own, alpha)
            fixed = welch(both.control, both.treatment, alpha=own)
            lift = None if always.problem else always.estimate
            point = DayPoint(day=iso(day), variant=name, lift=lift, fixed=bounds(fixed), sequential=bounds(always))
            points.append(point)
    return tuple(points)


def _segments(primary: Asked, variants: Sequence[str], found: Aggregates, alpha: float) -> tuple[Segment, ...]:
    """The largest ones, largest first."""
    sizes: dict[str, int] = {}
    for row in found.sums:
        if row.metric == UNITS and row.day == found.last_day:
            sizes[row.segment] = sizes.get(row.segment, 0) + int(row.sums["n"])
    chosen = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_SEGMENTS]
    segments = []
    for name in chosen:
        sums: Mapping[str, Sums] = found.of(primary.metric.key, segment=name)
        inside = Asked(primary.metric, Role.SECONDARY, sums)
        segments.append(Segment(name=name, cells=tuple(cell(inside, variants[0], one, alpha) for one in variants)))
    return tuple(segments)


def _planned(registered: RegisteredExperiment, primary: Asked, units: Mapping[str, int]) -> int | None:
    """Units in all at which the plan's effect shows with its power, by the always-valid test of the smallest arm."""
    weights = {name: weight for name, weight in shares(registered.definition).items() if weight > 0}
    control = registered.definition.control.key
    if control not in weights or len(weights) < 2 or not units.get(control):
        return None
    rival = min((name for name in weights if name != control), key=lambda name: weights[name])
    both = pair(primary.metric, primary.sums.get(control, {}), primary.sums.get(rival, {}))
    if both.control.variance <= 0 or both.control.unadjusted_mean == 0:
        return None
    scale = math.fsum(weights.values())
    plan = registered.plan
    planned = PowerPlan(
        mean=both.control.unadjusted_mean,
        variance=both.control.variance,
        control_share=weights[control] / scale,
        treatment_share=weights[rival] / scale,
        alpha=plan.alpha / (len(weights) - 1),
        tuning=DEFAULT_TUNING,
    )
    try:
        return units_needed(planned, plan.effect, plan.power)
    except ValidationFailed:
        return None  # the plan's effect is beyond any number of units


def _days_left(planned: int | None, found: Aggregates) -> int | None:
    daily = [sum(int(one["new"]) for one in found.of(UNITS, day).values()) for day in found.days()]
    if planned is None or not daily or not any(daily[-7:]):
        return None
    return max(days_needed(planned, daily) - len(daily), 0)
