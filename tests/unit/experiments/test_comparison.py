from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest

from services.recommender.experiments.alarms import HOUR_US, Counts, alarms
from services.recommender.experiments.comparison import Asked, results
from services.recommender.experiments.local_days import day_of, iso, start_us, zone_of
from services.recommender.experiments.metrics import CTR, Metric, parse
from services.recommender.experiments.report import AlarmCode, Role, Verdict
from services.recommender.experiments.slate_quality import quantile_ms, rarefied
from services.recommender.experiments.statistics.frequentist import welch
from services.recommender.experiments.statistics.moments import Moments, Ratio
from shared.errors import ValidationFailed

REVENUE = parse([])["revenue_per_unit"]


def sums(**letters: Any) -> dict[str, float]:
    found = {"n": float(len(letters["x"]))} | {name: float(np.sum(one)) for name, one in letters.items()}
    return found | {a + b: float(letters[a] @ letters[b]) for a, b in combinations_with_replacement(letters, 2)}


def drawn(mean: float, units: int = 4_000, seed: int = 0) -> Any:
    return np.random.default_rng(seed).gamma(2.0, mean / 2, units)


def test_a_mean_is_compared_as_welch_does() -> None:
    a, b = drawn(1.0), drawn(1.2, seed=1)
    found = results(
        [Asked(REVENUE, Role.PRIMARY, {"a": sums(x=a), "b": sums(x=b)})], ["a", "b"], alpha=0.05, correction="holm"
    )
    own = welch(Moments.of(a), Moments.of(b))
    cell = found[0].cells[1]
    assert cell.lift == pytest.approx(own.estimate)
    assert cell.fixed is not None
    assert cell.fixed.low == pytest.approx(own.low)
    assert cell.verdict is Verdict.BETTER
    assert found[0].cells[0].lift is None


def test_a_ratio_has_the_users_as_rows() -> None:
    dice = np.random.default_rng(3)
    y, d = dice.poisson(2, (2, 500)), dice.poisson(10, (2, 500)) + 1
    own = welch(Ratio.of(y[0], d[0]), Ratio.of(y[1], d[1]))
    one = {name: sums(x=y[place], y=d[place]) for place, name in enumerate("ab")}
    found = results([Asked(CTR, Role.PRIMARY, one)], ["a", "b"], alpha=0.05, correction="none")[0].cells[1]
    assert found.fixed is not None
    assert found.fixed.high == pytest.approx(own.high)


def test_the_past_narrows_the_interval() -> None:
    past = drawn(1.0)
    plain, adjusted = [], []
    for place in range(2):
        after = past + drawn(0.2, seed=place + 5)
        plain.append(sums(x=after))
        adjusted.append(sums(x=after, p=past))
    widths = []
    for both in (plain, adjusted):
        found = results(
            [Asked(REVENUE, Role.PRIMARY, dict(zip("ab", both, strict=True)))], "ab", alpha=0.05, correction="holm"
        )
        interval = found[0].cells[1].sequential
        assert interval is not None
        assert interval.low is not None
        assert interval.high is not None
        widths.append((found[0].cuped, interval.high - interval.low))
    assert [used for used, _ in widths] == [False, True]
    assert widths[1][1] < widths[0][1] / 3


def test_more_comparisons_widen_the_interval_and_raise_p_together() -> None:
    one = {
        name: sums(x=drawn(mean, seed=seed)) for seed, (name, mean) in enumerate([("a", 1.0), ("b", 1.12), ("c", 1.0)])
    }
    alone = results([Asked(REVENUE, Role.PRIMARY, one)], ["a", "b"], alpha=0.05, correction="holm")[0].cells[1]
    among = results([Asked(REVENUE, Role.PRIMARY, one)], ["a", "b", "c"], alpha=0.05, correction="holm")[0].cells[1]
    assert alone.p_value == pytest.approx(among.p_value)
    assert alone.p_adjusted is not None
    assert among.p_adjusted == pytest.approx(2 * alone.p_adjusted)
    assert alone.sequential is not None
    assert among.sequential is not None
    assert (among.sequential.low or 0) < (alone.sequential.low or 0)


def test_a_guardrail_passes_by_ruling_out_the_margin_and_not_by_being_undecided() -> None:
    one = {name: sums(x=drawn(1.0, 40_000, seed)) for seed, name in enumerate("ab")}
    for margin, verdict in ((0.2, Verdict.PASSED), (0.001, Verdict.UNDECIDED)):
        asked = Asked(REVENUE, Role.GUARDRAIL, one, margin)
        assert results([asked], "ab", alpha=0.05, correction="holm")[0].cells[1].verdict is verdict


def test_less_is_better_where_the_metric_says_so() -> None:
    lower = REVENUE.model_copy(update={"higher_is_better": False})
    one = {"a": sums(x=drawn(1.0)), "b": sums(x=drawn(2.0, seed=1))}
    assert (
        results([Asked(lower, Role.SECONDARY, one)], "ab", alpha=0.05, correction="holm")[0].cells[1].verdict
        is Verdict.WORSE
    )


@pytest.mark.parametrize("metric", parse([]).values(), ids=lambda metric: metric.key)
def test_a_variant_without_units_has_no_lift_and_says_why(metric: Metric) -> None:
    cell = results([Asked(metric, Role.PRIMARY, {})], "ab", alpha=0.05, correction="holm")[0].cells[1]
    assert (cell.units, cell.value, cell.lift, cell.p_value) == (0, None, None, None)
    assert cell.problem is not None


def counts(**changes: Any) -> Counts:
    content: dict[str, Any] = {
        "units": {"a": 1_000, "b": 1_000}, "may_have": {"a": 0.5, "b": 0.5}, "since_killed": {}, "excluded": 0,
        "newest_us": 0, "running_since_us": None,
    }  # fmt: skip
    return Counts(**{**content, **changes})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"units": {"a": 1_000, "b": 1_200}}, [(AlarmCode.SAMPLE_RATIO_MISMATCH, True)]),
        ({"may_have": {"a": 0.5, "b": 0.5, "c": 0.0}, "units": {"a": 9, "b": 9, "c": 1}}, [(AlarmCode.LEAK, True)]),
        ({"units": {"a": 9, "b": 9, "stranger": 1}}, [(AlarmCode.LEAK, True)]),
        ({"excluded": 1}, [(AlarmCode.MULTI_VARIANT_UNITS, False)]),
        ({"excluded": 100}, [(AlarmCode.MULTI_VARIANT_UNITS, True)]),
        ({"running_since_us": 1}, [(AlarmCode.STALE_DATA, True)]),
        ({"running_since_us": 1, "newest_us": 10 * HOUR_US}, []),
        ({"lost_slates": 3, "slates": 200}, [(AlarmCode.LOST_SLATES, True)]),
        ({"lost_slates": 3, "slates": 2000}, [(AlarmCode.LOST_SLATES, False)]),
    ],
)
def test_what_is_wrong_with_the_data_is_told(changes: dict[str, Any], wanted: list[Any]) -> None:
    assert [(one.code, one.blocks) for one in alarms(counts(**changes), 30 * HOUR_US)] == wanted


def test_a_killed_variants_earlier_units_are_no_leak_and_no_mismatch() -> None:
    killed = counts(
        may_have={"a": 0.5, "b": 0.0, "c": 0.5}, units={"a": 1_000, "b": 300, "c": 990}, since_killed={"b": 0}
    )
    assert alarms(killed, 0) == ()


def test_rarefied_coverage_is_what_drawing_again_gives() -> None:
    dice = np.random.default_rng(0)
    slates = [dice.choice(60, 5, replace=False, p=np.arange(1, 61) / 1830) for _ in range(200)]
    m = np.bincount(np.concatenate(slates), minlength=60)
    again = [
        len(set(np.concatenate([slates[n] for n in dice.choice(200, 10, replace=False)]).tolist()))
        for _ in range(2_000)
    ]
    assert rarefied(m[m > 0], 200, 10) == pytest.approx(np.mean(again), rel=0.01)
    assert rarefied(m[m > 0], 200, 200) == pytest.approx(np.count_nonzero(m))


def test_a_latency_quantile_is_never_too_good_and_at_most_a_step_too_bad() -> None:
    assert quantile_ms({"5000": 98, "40000": 1, "2000000": 1}, 0.5) == 5.05
    assert quantile_ms({"5000": 98, "40000": 1, "2000000": 1}, 0.99) == 40.5
    assert quantile_ms({"5000": 1, "2000000": 99}, 0.99) == 2050.0
    assert quantile_ms({}, 0.5) is None


def test_days_are_those_of_the_zone_also_where_summer_time_ends() -> None:
    zone = zone_of("America/New_York")
    day = day_of(1_793_505_600_000_000, zone)  # 2026-11-01 00:00 there
    assert iso(day) == "2026-11-01"
    assert (start_us(day + 1, zone) - start_us(day, zone)) == 25 * HOUR_US
    assert day_of(start_us(day, zone) - 1, zone) == day - 1
    with pytest.raises(ValidationFailed, match="IANA"):
        zone_of("Middle/Earth")
