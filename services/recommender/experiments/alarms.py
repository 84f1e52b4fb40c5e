"""What is wrong with an experiment's data. Pure; the counts come from the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.recommender.experiments.report import Alarm, AlarmCode
from services.recommender.experiments.statistics.srm import sample_ratio

MULTI_VARIANT_SHARE = 0.01
"""Of all units; above it the verdict is hidden (GrowthBook warns at 1 % too)."""
LOST_SHARE = 0.01
"""Of all slates; above it the verdict is hidden. A unit whose slate was lost is exposed by its next one, a little
later, and which variant's was lost is left to chance unless one is served much more slowly."""
STALE_HOURS = 26.0
"""A daily build, and two hours for it to run."""
HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """`units` {variant: units exposed}; `may_have` {variant: weight, 0 where nobody may be}; `since_killed`
    {variant: units first exposed after it was killed}; `newest_us` the newest data; `running_since_us` None: it does
    not run. `lost_slates`: those that a journal had to drop, beside the `slates` that it took."""

    units: Mapping[str, int]
    may_have: Mapping[str, float]
    since_killed: Mapping[str, int]
    excluded: int
    newest_us: int | None
    running_since_us: int | None
    lost_slates: int = 0
    slates: int = 0


def alarms(counts: Counts, now_us: int) -> tuple[Alarm, ...]:
    """The ones that block first."""
    found = [*_split(counts), *_excluded(counts), *_stale(counts, now_us)]
    if counts.lost_slates:
        share = counts.lost_slates / (counts.lost_slates + counts.slates)
        facts = {"slates": counts.lost_slates, "share": share}
        found.append(Alarm(code=AlarmCode.LOST_SLATES, blocks=share >= LOST_SHARE, facts=facts))
    return tuple(sorted(found, key=lambda alarm: not alarm.blocks))


def _split(counts: Counts) -> list[Alarm]:
    if not any(counts.may_have.values()):
        return []
    units = {**counts.units, **counts.since_killed}
    ratio = sample_ratio(units, counts.may_have)
    found = []
    if ratio.mismatch:
        total = sum(counts.units.get(name, 0) for name in ratio.expected)
        off = max(ratio.expected, key=lambda name: abs(counts.units.get(name, 0) - ratio.expected[name]))
        facts: dict[str, float | int | str] = {
            "p_value": ratio.p_value,
            "units": total,
            "variant": off,
            "share": counts.units.get(off, 0) / total,
            "expected_share": ratio.expected[off] / total,
        }
        found.append(Alarm(code=AlarmCode.SAMPLE_RATIO_MISMATCH, blocks=True, facts=facts))
    for variant, leaked in ratio.leaks.items():
        found.append(Alarm(code=AlarmCode.LEAK, blocks=True, facts={"variant": variant, "units": leaked}))
    return found


def _excluded(counts: Counts) -> list[Alarm]:
    if not counts.excluded:
        return []
    share = counts.excluded / (counts.excluded + sum(counts.units.values()))
    facts = {"units": counts.excluded, "share": share}
    return [Alarm(code=AlarmCode.MULTI_VARIANT_UNITS, blocks=share >= MULTI_VARIANT_SHARE, facts=facts)]


def _stale(counts: Counts, now_us: int) -> list[Alarm]:
    if counts.running_since_us is None:
        return []
    hours = (now_us - max(counts.newest_us or 0, counts.running_since_us)) / HOUR_US
    return (
        [Alarm(code=AlarmCode.STALE_DATA, blocks=True, facts={"hours": round(hours, 1)})] if hours > STALE_HOURS else []
    )
