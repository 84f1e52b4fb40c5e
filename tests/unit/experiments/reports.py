"""Reports and their parts, made by hand."""

from __future__ import annotations

from typing import Any

from services.recommender.experiments.report import (
    Alarm,
    AlarmCode,
    Bounds,
    Cell,
    Conclusion,
    DayCount,
    DayPoint,
    Decision,
    MetricResult,
    Report,
    Role,
    Segment,
    SlateQuality,
    VariantCount,
    Verdict,
)


def cell(variant: str, verdict: Verdict = Verdict.UNDECIDED, lift: float | None = 0.02) -> Cell:
    if variant == "control":
        return Cell(variant=variant, units=100, value=0.1, standard_deviation=0.3)
    interval = Bounds(low=-0.01, high=None)
    return Cell(
        variant=variant, units=100, value=0.102, standard_deviation=0.3, lift=lift, difference=0.002, fixed=interval,
        sequential=interval, p_value=0.2, p_adjusted=0.4, chance_to_win=0.8, verdict=verdict,
    )  # fmt: skip


def metric(
    key: str,
    role: Role,
    verdicts: dict[str, Verdict],
    lifts: dict[str, float] | None = None,
    margin: float | None = None,
) -> MetricResult:
    cells = [cell("control"), *(cell(name, one, (lifts or {}).get(name, 0.02)) for name, one in verdicts.items())]
    return MetricResult(
        metric=key, title=key, role=role, unit="share", higher_is_better=True, cells=tuple(cells), margin=margin
    )


def report(**changes: Any) -> Report:
    content: dict[str, Any] = {
        "experiment": "shelf", "phase": 0, "as_of_us": 5, "simulated": False, "control": "control",
        "variants": (VariantCount(variant="control", units=100, share=0.5, expected_share=0.5),),
        "excluded_units": 3,
        "alarms": (Alarm(code=AlarmCode.LEAK, blocks=True, facts={"variant": "=cmd()", "units": 2}),),
        "metrics": (metric("ctr", Role.PRIMARY, {"b": Verdict.BETTER}),),
        "quality": (
            SlateQuality(
                variant="control", requests=9, p50_ms=1.0, p95_ms=2.0, p99_ms=3.0, error_rate=0.0, fallback_rate=0.0,
                degraded_rate=0.0, empty_rate=0.0, ild=None, novelty=None, coverage=12.5, coverage_requests=4,
            ),
        ),
        "exposures_by_day": (DayCount(day="2026-11-01", variant="b", units=7),),
        "lift_by_day": (
            DayPoint(day="2026-11-01", variant="b", lift=0.02, fixed=Bounds(low=0.0, high=0.1), sequential=None),
        ),
        "segment_by": "country",
        "segments": (Segment(name="@de", cells=(cell("control"), cell("b"))),),
        "conclusion": Conclusion(
            decision=Decision.BLOCKED, variant=None, reasons=(("leak", {"units": 2}), ("bare", {})), days_left=None
        ),
        "alpha": 0.05, "correction": "holm",
    }  # fmt: skip
    return Report(**{**content, **changes})
