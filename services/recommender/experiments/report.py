"""What an experiment's page, its JSON and its CSV say. The analysis fills it, the doors only write it down.

Every number is here once; a door that computes one of its own would show another truth than the next door. Lifts are
fractions of the control (0.05 is +5 %). NaN and infinities are None: JSON has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class AlarmCode(StrEnum):
    """What forbids a verdict while it lasts."""

    SAMPLE_RATIO_MISMATCH = "sample_ratio_mismatch"
    LEAK = "leak"
    MULTI_VARIANT_UNITS = "multi_variant_units"
    STALE_DATA = "stale_data"
    LOST_SLATES = "lost_slates"


class Health(StrEnum):
    """Of an experiment in the list; `blocked`: an alarm hides the verdict."""

    NO_DATA = "no_data"
    HEALTHY = "healthy"
    BLOCKED = "blocked"


class Role(StrEnum):
    PRIMARY = "primary"
    SECONDARY = "secondary"
    GUARDRAIL = "guardrail"


class Verdict(StrEnum):
    """Of one metric of one variant. The first two are by the corrected interval that the page shows."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"
    PASSED = "passed"
    FAILED = "failed"


class Decision(StrEnum):
    """Of the whole experiment; the page words it, in the reader's language, with `Conclusion.reasons`."""

    BLOCKED = "blocked"
    TOO_EARLY = "too_early"
    SHIP = "ship"
    DO_NOT_SHIP = "do_not_ship"
    NO_DIFFERENCE_SEEN = "no_difference_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """`facts` fill the page's sentence (`p_value`, `units`, `share`, `hours`…); `blocks`: the verdict is hidden."""

    code: AlarmCode
    blocks: bool
    facts: Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`[low, high]` of a relative lift; None: unbounded."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One metric of one variant. `value` is its mean over `units`; for the control everything from `lift` on is None.

    `fixed` holds for one look planned beforehand, `sequential` at every look. `p_value` as tested, `p_adjusted` after
    the correction over all comparisons of the role. `problem`: why there is no lift, in words.
    """

    variant: str
    units: int
    value: float | None
    standard_deviation: float | None
    lift: float | None = None
    difference: float | None = None
    fixed: Bounds | None = None
    sequential: Bounds | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    chance_to_win: float | None = None
    verdict: Verdict = Verdict.UNDECIDED
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """`metric` its key (the page has titles in two languages for the built-in ones, `title` for a team's own). `unit`:
    share, per_unit, currency, seconds, ms, count. `margin`: of a guardrail, the accepted harm as a fraction.
    `cuped`: variance was reduced by what units did before; `winsorised_at` in the metric's unit."""

    metric: str
    title: str
    role: Role
    unit: str
    higher_is_better: bool
    cells: tuple[Cell, ...]
    margin: float | None = None
    cuped: bool = False
    winsorised_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantCount:
    """`expected_share` by weight (0 for a variant that may have no units)."""

    variant: str
    units: int
    share: float
    expected_share: float
    killed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DayPoint:
    """As of the end of `day` (ISO date in the experiment's time zone): the cumulative lift of the primary metric."""

    day: str
    variant: str
    lift: float | None
    fixed: Bounds | None
    sequential: Bounds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCount:
    """Units first exposed on `day`."""

    day: str
    variant: str
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLift:
    """Of one `quantile` (p95) against the control, by a bootstrap over users, for one look planned beforehand."""

    quantile: str
    lift: float | None
    fixed: Bounds | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlateQuality:
    """What the served slates of a variant were like. Latencies in ms; rates are shares of requests; `coverage` counts
    distinct items in `coverage_requests` requests, the same number for every variant (rarefaction).
    `latency_lifts`: none for the control."""

    variant: str
    requests: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    error_rate: float | None
    fallback_rate: float | None
    degraded_rate: float | None
    empty_rate: float | None
    ild: float | None
    novelty: float | None
    coverage: float | None
    coverage_requests: int
    latency_lifts: tuple[LatencyLift, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The primary metric inside one segment (`name` the attribute's value; empty: unknown). Not corrected."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """`reasons`: codes with facts, most important first; `variant`: the one to ship. `days_left`: until the planned
    power at today's traffic; None when unknown."""

    decision: Decision
    variant: str | None
    reasons: tuple[tuple[str, Mapping[str, float | int | str]], ...]
    days_left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`as_of_us`: newest data in it; None: no aggregate was built yet. `simulated`: some of its traffic was made by
    the simulator, and every page must say so. `excluded_units`: met several variants. Variants: the control first.
    `holdout`: the control is who is held out, and the lift what all covered experiments shipped together."""

    experiment: str
    phase: int
    as_of_us: int | None
    simulated: bool
    control: str
    variants: tuple[VariantCount, ...]
    excluded_units: int
    alarms: tuple[Alarm, ...]
    metrics: tuple[MetricResult, ...]
    quality: tuple[SlateQuality, ...]
    exposures_by_day: tuple[DayCount, ...]
    lift_by_day: tuple[DayPoint, ...]
    segment_by: str | None
    segments: tuple[Segment, ...]
    conclusion: Conclusion
    alpha: float
    correction: str
    holdout: bool = False
