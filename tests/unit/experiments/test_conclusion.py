from __future__ import annotations

from typing import Any

from services.recommender.experiments.conclusion import conclude
from services.recommender.experiments.report import Alarm, AlarmCode, Conclusion, Decision, Role, Verdict
from tests.unit.experiments.reports import metric

BETTER, WORSE, UNDECIDED = Verdict.BETTER, Verdict.WORSE, Verdict.UNDECIDED
PASSED, FAILED = Verdict.PASSED, Verdict.FAILED


def concluded(
    primary: dict[str, Verdict],
    guardrail: dict[str, Verdict] | None = None,
    alarms: tuple[Alarm, ...] = (),
    **more: Any,
) -> Conclusion:
    metrics = [metric("ctr", Role.PRIMARY, primary, more.pop("lifts", None))]
    if guardrail:
        metrics.append(metric("revenue_per_unit", Role.GUARDRAIL, guardrail, margin=0.01))
    facts = {"units": 1_000, "planned_units": 800, "days_left": 0, **more}
    return conclude(alarms, metrics, list(primary), **facts)


def codes(found: Conclusion) -> list[str]:
    return [code for code, _ in found.reasons]


def test_an_alarm_that_blocks_hides_whatever_the_numbers_say() -> None:
    alarm = Alarm(code=AlarmCode.LEAK, blocks=True, facts={"units": 1})
    found = concluded({"b": BETTER}, alarms=(alarm,))
    assert (found.decision, codes(found)) == (Decision.BLOCKED, ["leak"])


def test_an_alarm_that_only_warns_hides_nothing() -> None:
    alarm = Alarm(code=AlarmCode.MULTI_VARIANT_UNITS, blocks=False, facts={"units": 1})
    assert concluded({"b": BETTER}, alarms=(alarm,)).decision is Decision.SHIP


def test_a_better_variant_whose_guardrails_passed_is_shipped() -> None:
    found = concluded({"b": BETTER}, {"b": PASSED})
    assert (found.decision, found.variant, codes(found)) == (Decision.SHIP, "b", ["primary_better"])


def test_before_the_planned_units_even_a_better_variant_is_too_early() -> None:
    found = concluded({"b": BETTER}, units=799, days_left=3)
    assert (found.decision, codes(found), found.days_left) == (Decision.TOO_EARLY, ["units_missing"], 3)


def test_without_a_plan_it_is_too_early_and_says_why() -> None:
    assert codes(concluded({"b": BETTER}, planned_units=None)) == ["plan_unknown"]


def test_clear_harm_ends_it_before_the_planned_units() -> None:
    found = concluded({"b": WORSE}, units=10)
    assert (found.decision, codes(found)) == (Decision.DO_NOT_SHIP, ["primary_worse"])


def test_a_failed_guardrail_forbids_a_better_variant() -> None:
    found = concluded({"b": BETTER}, {"b": FAILED})
    assert (found.decision, codes(found)) == (Decision.DO_NOT_SHIP, ["guardrail_failed"])


def test_an_undecided_guardrail_is_not_a_passed_one() -> None:
    found = concluded({"b": BETTER}, {"b": UNDECIDED})
    assert (found.decision, codes(found)) == (Decision.TOO_EARLY, ["primary_better", "guardrail_undecided"])


def test_of_several_better_variants_the_largest_lift_is_shipped() -> None:
    assert concluded({"b": BETTER, "c": BETTER}, lifts={"b": 0.02, "c": 0.03}).variant == "c"


def test_a_variant_that_failed_does_not_stop_another_one() -> None:
    found = concluded({"b": BETTER, "c": BETTER}, {"b": FAILED, "c": PASSED}, lifts={"b": 0.9, "c": 0.1})
    assert (found.decision, found.variant) == (Decision.SHIP, "c")
    assert codes(found) == ["primary_better", "guardrail_failed"]


def test_at_full_size_without_significance_no_difference_was_seen() -> None:
    assert concluded({"b": UNDECIDED}).decision is Decision.NO_DIFFERENCE_SEEN


def test_without_units_it_is_too_early() -> None:
    assert codes(concluded({"b": UNDECIDED}, units=0)) == ["no_units"]
