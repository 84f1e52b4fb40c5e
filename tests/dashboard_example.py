"""Reports, experiments and a user for the dashboard's tests: fixed numbers, each findable on a page."""

from __future__ import annotations

import math
from dataclasses import replace

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.dashboard.ports import HistoryEvent, NotShown, SlateRow, UserPage
from services.recommender.experiments.definitions import Experiment, Status, Variant
from services.recommender.experiments.registered import Plan, RegisteredExperiment
from services.recommender.experiments.report import (
    Alarm,
    AlarmCode,
    Bounds,
    Cell,
    Conclusion,
    DayCount,
    DayPoint,
    Decision,
    LatencyLift,
    MetricResult,
    Report,
    Role,
    Segment,
    SlateQuality,
    VariantCount,
    Verdict,
)

DAY_US = 86_400_000_000
START_US = 1_793_664_000_000_000  # 2026-11-03
DAYS = 14


def experiment(key: str = "diverse-home", status: Status = Status.RUNNING) -> RegisteredExperiment:
    return RegisteredExperiment(
        definition=Experiment(
            key=key,
            status=status,
            variants=(
                Variant("control", 0.5, {"diversity": 0.1}),
                Variant("diverse", 0.5, {"diversity": 0.4}),
            ),
            fallback_unit="visitor",
            namespace=Namespace("home", 0.0, 0.5),
        ),
        owner="Mei Lin",
        hypothesis="A home page with more variety keeps people looking: more clicks, and no sale lost.",
        plan=Plan(primary="ctr", secondary=("watch_time",), guardrails={"revenue": 0.02}),
        scenes=("home",),
        targeting='country IN ("DE", "CN")',
        segment_by="context.device",
        time_zone="Asia/Shanghai",
        currency="CNY",
        created_at_us=START_US - DAY_US,
        updated_at_us=START_US,
        started_at_us=None if status is Status.DRAFT else START_US,
        stopped_at_us=START_US + 9 * DAY_US if status is Status.STOPPED else None,
    )


def treatment(units: int, value: float, deviation: float, lift: float, half: float, verdict: Verdict) -> Cell:
    return Cell(
        variant="diverse",
        units=units,
        value=value,
        standard_deviation=deviation,
        lift=lift,
        difference=value * lift / (1 + lift),
        fixed=Bounds(low=lift - half, high=lift + half),
        sequential=Bounds(low=lift - 1.6 * half, high=lift + 1.6 * half),
        p_value=0.0123 if lift > 0 else 0.4567,
        p_adjusted=0.0246 if lift > 0 else 0.5678,
        chance_to_win=0.9876 if lift > 0 else 0.3456,
        verdict=verdict,
    )


def control(units: int, value: float, deviation: float) -> Cell:
    return Cell(variant="control", units=units, value=value, standard_deviation=deviation)


def report(key: str = "diverse-home") -> Report:
    ctr = MetricResult(
        metric="ctr", title="CTR", role=Role.PRIMARY, unit="share", higher_is_better=True, cuped=True,
        cells=(control(50123, 0.0821, 0.2745), treatment(49876, 0.0861, 0.2805, 0.0487, 0.0221, Verdict.BETTER)),
    )  # fmt: skip
    watch = MetricResult(
        metric="watch_time", title="Watch time", role=Role.SECONDARY, unit="seconds", higher_is_better=True,
        winsorised_at=7200.0,
        cells=(control(50123, 311.4, 522.7), treatment(49876, 318.9, 530.1, 0.0241, 0.0305, Verdict.UNDECIDED)),
    )  # fmt: skip
    revenue = MetricResult(
        metric="revenue", title="Revenue", role=Role.GUARDRAIL, unit="currency", higher_is_better=True, margin=0.02,
        cells=(control(50123, 12.37, 41.62), treatment(49876, 12.29, 40.98, -0.0065, 0.0119, Verdict.PASSED)),
    )  # fmt: skip
    own = MetricResult(
        metric="baskets", title="Baskets begun", role=Role.SECONDARY, unit="count", higher_is_better=True,
        cells=(
            control(50123, 0.4312, 0.9123),
            Cell(variant="diverse", units=49876, value=0.0, standard_deviation=0.0, problem="no event of it was seen"),
        ),
    )  # fmt: skip
    return Report(
        experiment=key,
        phase=0,
        as_of_us=START_US + DAYS * DAY_US,
        simulated=False,
        control="control",
        variants=(
            VariantCount(variant="control", units=50123, share=0.50124, expected_share=0.5),
            VariantCount(variant="diverse", units=49876, share=0.49876, expected_share=0.5),
        ),
        excluded_units=37,
        alarms=(Alarm(code=AlarmCode.MULTI_VARIANT_UNITS, blocks=False, facts={"units": 37, "share": 0.00037}),),
        metrics=(ctr, watch, own, revenue),
        quality=(quality("control", 40.12, 0.3121), latencies(quality("diverse", 42.34, 0.4987))),
        exposures_by_day=tuple(
            DayCount(day=_day(n), variant=name, units=round(9000 / (1 + n / 2)) + shift + n)
            for n in range(DAYS)
            for name, shift in (("control", 11), ("diverse", 7))
        ),
        lift_by_day=tuple(_point(n) for n in range(DAYS)),
        segment_by="context.device",
        segments=(
            Segment(
                name="phone",
                cells=(
                    control(30111, 0.0911, 0.2877),
                    treatment(30222, 0.0966, 0.2954, 0.0604, 0.0302, Verdict.UNDECIDED),
                ),
            ),
            Segment(
                name="",
                cells=(
                    control(2012, 0.0533, 0.2246),
                    treatment(1987, 0.0529, 0.2238, -0.0075, 0.21, Verdict.UNDECIDED),
                ),
            ),
        ),
        conclusion=Conclusion(
            decision=Decision.SHIP,
            variant="diverse",
            reasons=(
                ("primary_better", {"metric": "ctr", "lift": 0.0487}),
                ("guardrails_passed", {"metric": "revenue", "margin": 0.02}),
            ),
            days_left=3,
        ),
        alpha=0.05,
        correction="holm",
    )


def blocked(key: str = "new-ranker") -> Report:
    mismatch = Alarm(
        code=AlarmCode.SAMPLE_RATIO_MISMATCH,
        blocks=True,
        facts={"p_value": 0.0000012, "units": 99999, "variant": "diverse"},
    )
    stale = Alarm(code=AlarmCode.STALE_DATA, blocks=False, facts={"hours": 31})
    made = report(key)
    return replace(made, alarms=(stale, mismatch), simulated=True)


def empty(key: str) -> Report:
    """Before the first aggregate."""
    conclusion = Conclusion(decision=Decision.TOO_EARLY, variant=None, reasons=(), days_left=None)
    none = replace(report(key), as_of_us=None, metrics=(), quality=(), segments=(), alarms=(), lift_by_day=())
    counts = tuple(replace(count, units=0, share=0.0) for count in none.variants)
    return replace(none, variants=counts, excluded_units=0, exposures_by_day=(), conclusion=conclusion)


def quality(variant: str, p50: float, ild: float) -> SlateQuality:
    return SlateQuality(
        variant=variant, requests=412_345 + round(p50), p50_ms=p50, p95_ms=p50 + 11.5, p99_ms=p50 + 19.25,
        error_rate=0.0001, fallback_rate=0.0042, degraded_rate=0.0173, empty_rate=0.0003, ild=ild,
        novelty=9.87 + ild, coverage=1830 + 1000 * ild, coverage_requests=400_000,
    )  # fmt: skip


def latencies(one: SlateQuality) -> SlateQuality:
    found = (("p50", 0.0553, 0.0123), ("p95", 0.0427, 0.0281), ("p99", None, 0.0))
    lifts = tuple(
        LatencyLift(
            quantile=name,
            lift=lift,
            fixed=None if lift is None else Bounds(low=lift - half, high=lift + half),
            problem="a variant has fewer than 20 users, too few to draw from again" if lift is None else None,
        )
        for name, lift, half in found
    )
    return replace(one, latency_lifts=lifts)


def user() -> UserPage:
    return UserPage(
        user_id="ann",
        history=(
            HistoryEvent(
                occurred_at_us=START_US, item_id="i-77", title="Silk scarf", event_type="purchase", event_value=59.9
            ),
            HistoryEvent(occurred_at_us=START_US - DAY_US, item_id="i-12", title=None, event_type="click"),
        ),
        slate=(
            SlateRow(
                position=0, item_id="i-90", title="Linen shirt", score=0.8123, sources=("user_vector", "item_to_item"),
                scores={"click": 0.2112, "purchase": 0.0313}, reasons=("because of Silk scarf",), propensity=0.9321,
            ),
            SlateRow(position=1, item_id="i-91", title=None, score=0.7001, sources=("popular",)),
        ),
        not_shown=(NotShown(item_id="i-77", title="Silk scarf", stage="filter", rule="already bought"),),
        recommendation_id="0193a1b2c3d4e5f60718293a4b5c6d7e",
        served_at_us=START_US + 5,
        scene="home",
        release="2026-11-20.1",
        took_ms=41.7,
        experiments={"diverse-home": "diverse"},
        source_counts={"user_vector": 200, "popular": 51},
        degraded=(("scorer", "deadline", "last_good"),),
    )  # fmt: skip


def _day(number: int) -> str:
    return f"2026-11-{3 + number:02d}"


def _point(number: int) -> DayPoint:
    lift = 0.0487 + 0.03 * math.cos(number) / (number + 1)
    half = 0.0221 * math.sqrt(DAYS / (number + 1))
    wide = Bounds(low=lift - 1.6 * half, high=lift + 1.6 * half) if number else Bounds(low=None, high=None)
    return DayPoint(
        day=_day(number), variant="diverse", lift=lift, fixed=Bounds(low=lift - half, high=lift + half), sequential=wide
    )
