"""Who meets which variant, and what happens to those enrolled when an experiment changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.definitions import (
    Experiment,
    HoldOut,
    Status,
    Variant,
    conflicting_settings,
    kill_variant,
    next_phase,
)
from services.recommender.experiments.enrolment import Assignment, Reason, assign, merged_settings
from services.recommender.experiments.holdouts import Holdout, holding
from services.recommender.experiments.sticky import document_key, merge
from shared.errors import ValidationFailed

USERS = [f"user-{number}" for number in range(2_000)]


def experiment(**changes: Any) -> Experiment:
    variants = (
        Variant("control", 0.4),
        Variant("diverse", 0.3, {"diversity": 0.5}),
        Variant("bold", 0.3, {"diversity": 0.9, "deadline_ms": 50}),
    )
    return Experiment(**{"key": "diversity", "variants": variants, "status": Status.RUNNING, **changes})


def variants_of(one: Experiment, **options: Any) -> dict[str, str | None]:
    return {user: assign(one, {"user": user}, **options).variant for user in USERS}


def reasons_of(one: Experiment, **options: Any) -> Counter[Reason]:
    return Counter(assign(one, {"user": user}, **options).reason for user in USERS)


def remembered(assignment: Assignment) -> dict[str, str]:
    assert assignment.remember is not None
    return dict([assignment.remember])


def test_every_unit_meets_one_variant_in_proportion_to_the_weights_and_gets_its_settings() -> None:
    counts = Counter(variants_of(experiment()).values())
    for key, weight in (("control", 0.4), ("diverse", 0.3), ("bold", 0.3)):
        assert abs(counts[key] / len(USERS) - weight) < 4 * (weight * (1 - weight) / len(USERS)) ** 0.5
    bold = next(one for user in USERS if (one := assign(experiment(), {"user": user})).variant == "bold")
    assert bold.settings == {"diversity": 0.9, "deadline_ms": 50}
    assert bold.is_data


def test_experiments_of_one_namespace_share_no_unit() -> None:
    one = experiment(key="one", namespace=Namespace("home", 0, 0.5))
    other = experiment(key="other", namespace=Namespace("home", 0.5, 1))
    first, second = variants_of(one), variants_of(other)
    assert all((first[user] is None) != (second[user] is None) for user in USERS)
    assert reasons_of(one)[Reason.OTHER_NAMESPACE] == sum(variant is None for variant in first.values()) > 0


def test_units_outside_the_coverage_or_the_target_stay_out() -> None:
    assert reasons_of(experiment(coverage=0.5))[Reason.NOT_COVERED] > len(USERS) * 0.45
    assert reasons_of(experiment(), targeted=lambda one: one.key != "diversity") == {Reason.NOT_TARGETED: len(USERS)}


@pytest.mark.parametrize("status", [Status.DRAFT, Status.STOPPED])
def test_only_a_running_experiment_enrols_but_a_forced_variant_can_be_looked_at(status: Status) -> None:
    assert reasons_of(experiment(status=status)) == {Reason.NOT_RUNNING: len(USERS)}
    forced = assign(experiment(status=status), {"user": "user-1"}, forced={"diversity": "bold"})
    assert (forced.variant, forced.reason, forced.is_data) == ("bold", Reason.FORCED, False)
    assert forced.remember is None


def test_the_request_forces_before_the_definition_and_an_unknown_name_forces_nothing() -> None:
    listed = experiment(forced={"user-1": "bold"})
    assert assign(listed, {"user": "user-1"}).variant == "bold"
    assert assign(listed, {"user": "user-1"}, forced={"diversity": "control"}).variant == "control"
    assert assign(listed, {"user": "user-1"}, forced={"diversity": "gone"}).variant == "bold"
    assert assign(experiment(), {"user": "user-1"}, forced={"diversity": "gone"}).reason is Reason.BUCKET


def test_a_request_without_the_unit_stays_out_and_the_fallback_counts_only_with_sticky_buckets() -> None:
    one = experiment(fallback_unit="visitor")
    assert assign(one, {"visitor": "v1"}).reason is Reason.NO_UNIT
    visitor = assign(one, {"visitor": "v1"}, sticky={})
    assert (visitor.unit, visitor.value, visitor.reason) == ("visitor", "v1", Reason.BUCKET)


def test_who_signs_in_keeps_the_variant_of_the_visitor_and_the_account_wins_over_it() -> None:
    one = experiment(fallback_unit="visitor")
    for user in USERS[:50]:
        visitor = assign(one, {"visitor": "v" + user}, sticky={})
        kept = assign(one, {"visitor": "v" + user, "user": user}, sticky=merge({}, remembered(visitor)))
        assert (kept.variant, kept.reason, kept.remember) == (visitor.variant, Reason.STICKY, None)
    both = merge({"diversity__0": "bold"}, {"diversity__0": "control", "other__0": "x"})
    assert both == {"diversity__0": "bold", "other__0": "x"}
    assert document_key("user", "42") == "user||42"


def test_a_sticky_unit_stays_when_targeting_or_coverage_would_drop_it() -> None:
    narrow = experiment(coverage=0.0)
    sticky = {"diversity__0": "bold"}
    kept = assign(narrow, {"user": "user-1"}, sticky=sticky, targeted=lambda one: one.key == "other")
    assert (kept.variant, kept.reason) == ("bold", Reason.STICKY)
    assert assign(narrow, {"user": "user-1"}, sticky={}).reason is Reason.NOT_COVERED


def test_new_weights_start_a_new_phase_that_old_buckets_do_not_bind() -> None:
    later = next_phase(experiment(), [0.1, 0.1, 0.8])
    assert (later.phase, later.first_open_phase) == (1, 0)
    for user in USERS[:200]:
        old = remembered(assign(experiment(), {"user": user}, sticky={}))
        new = assign(later, {"user": user}, sticky=old)
        assert new.reason is Reason.BUCKET
        assert new.remember is not None
        assert new.remember[0] == "diversity__1"


def test_a_phase_can_leave_out_all_who_met_the_one_before() -> None:
    later = next_phase(experiment(), [0.2, 0.4, 0.4], keep_out_earlier=True)
    assert assign(later, {"user": "user-1"}, sticky={"diversity__0": "control"}).reason is Reason.CLOSED_PHASE
    assert assign(later, {"user": "user-1"}, sticky={"other__0": "control"}).reason is Reason.BUCKET


def test_another_seed_draws_everybody_again_and_the_same_one_nobody() -> None:
    before = variants_of(experiment())
    assert variants_of(next_phase(experiment())) == before
    again = variants_of(next_phase(experiment(), seed="again"))
    moved = sum(before[user] != again[user] for user in USERS) / len(USERS)
    assert abs(moved - (1 - 0.4**2 - 2 * 0.3**2)) < 0.05


def test_killing_a_variant_moves_nobody_else_whether_sticky_or_not() -> None:
    before, dead = variants_of(experiment()), kill_variant(experiment(), "diverse")
    after = variants_of(dead)
    assert all(after[user] == (None if before[user] == "diverse" else before[user]) for user in USERS)
    assert dead.phase == 0
    killed = assign(dead, {"user": "user-1"}, sticky={"diversity__0": "diverse"})
    assert (killed.variant, killed.reason, dict(killed.settings)) == (None, Reason.VARIANT_KILLED, {})
    assert assign(dead, {"user": "user-1"}, forced={"diversity": "diverse"}).variant == "diverse"


def test_the_control_cannot_be_killed_nor_a_variant_that_is_none() -> None:
    with pytest.raises(ValidationFailed, match="stop the experiment"):
        kill_variant(experiment(), "control")
    with pytest.raises(ValidationFailed, match="they are control, diverse, bold"):
        kill_variant(experiment(), "odd")


def holdout(share: float = 0.1, *, unit: str = "user", **scope: Any) -> Holdout:
    parts = (Variant("held_out", share), Variant("rest", 1 - share))
    definition = Experiment(key="quarter", variants=parts, status=Status.RUNNING, unit=unit, holdout=HoldOut(**scope))
    return Holdout(definition)


def test_held_out_units_meet_no_variant_even_if_sticky_and_are_alike_for_all_experiments() -> None:
    quarter = holdout()
    out = {user for user in USERS if holding([quarter], {"user": user}, 0)}
    assert abs(len(out) / len(USERS) - 0.1) < 0.03
    assert out == {user for user, met in variants_of(quarter.definition).items() if met == "held_out"}
    for key in ("diversity", "other"):
        for user in USERS[:200]:
            met = assign(experiment(key=key), {"user": user}, held_by=holding([quarter], {"user": user}, 0))
            assert (met.variant is None) == (user in out)
    held = holding([quarter], {"user": next(iter(out))}, 0)
    assert assign(experiment(), {"user": "x"}, sticky={"diversity__0": "bold"}, held_by=held).reason is Reason.HELD_OUT
    assert assign(quarter.definition, {"user": next(iter(out))}, held_by=held).variant == "held_out", "it reports"


def test_a_holdout_of_a_namespace_holds_out_of_its_experiments_alone() -> None:
    held = (holdout(namespace="home"),)
    inside, outside = experiment(namespace=Namespace("home", 0, 1)), experiment(namespace=Namespace("cart", 0, 1))
    reasons = [assign(one, {"user": "u"}, held_by=held).reason for one in (inside, outside, experiment())]
    assert reasons == [Reason.HELD_OUT, Reason.BUCKET, Reason.BUCKET]


def test_a_holdout_is_over_at_its_end_and_when_it_is_stopped() -> None:
    quarter = holdout(1.0, ends_at_us=1000)
    assert [quarter.holds({"user": "ann"}, now) for now in (999, 1000)] == [True, False]
    stopped = Holdout(replace(quarter.definition, status=Status.STOPPED))
    assert not stopped.holds({"user": "ann"}, 999)


def test_a_user_held_out_stays_so_when_the_experiment_hashes_the_visitor() -> None:
    quarter = holdout()
    user = next(user for user in USERS if quarter.holds({"user": user}, 0))
    assert quarter.holds({"visitor": "v1", "user": user}, 0)
    assert not quarter.holds({"visitor": user}, 0)


def test_a_larger_holdout_keeps_those_it_held() -> None:
    small, large = holdout(0.05), holdout(0.2)
    assert all(large.holds({"user": user}, 0) for user in USERS if small.holds({"user": user}, 0))


def test_two_experiments_that_change_one_setting_of_the_same_units_conflict() -> None:
    one = experiment(key="one", namespace=Namespace("home", 0, 0.5))
    overlapping = experiment(key="two", namespace=Namespace("home", 0.4, 1))
    apart = experiment(key="two", namespace=Namespace("home", 0.5, 1))
    assert conflicting_settings(one, overlapping) == {"diversity", "deadline_ms"}
    assert conflicting_settings(one, apart) == conflicting_settings(apart, one) == frozenset()
    assert conflicting_settings(one, replace(apart, unit="visitor")) == {"diversity", "deadline_ms"}
    assert conflicting_settings(one, experiment(key="two")) == {"diversity", "deadline_ms"}


def test_settings_of_several_experiments_are_merged_and_the_first_wins() -> None:
    one = assign(experiment(), {"user": "u"}, forced={"diversity": "diverse"})
    other = assign(experiment(key="other"), {"user": "u"}, forced={"other": "bold"})
    assert merged_settings([one, other]) == {"diversity": 0.5, "deadline_ms": 50}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"key": ""}, "/key"),
        ({"variants": (Variant("only", 1.0),)}, "/variants"),
        ({"variants": (Variant("same", 0.5), Variant("same", 0.5))}, "/variants"),
        ({"variants": (Variant("a", 0.5), Variant("b", 0.4))}, "/weights"),
        ({"variants": (Variant("a", 1.5), Variant("b", -0.5))}, "/weights"),
        ({"variants": (Variant("a", float("nan")), Variant("b", 0.5))}, "/weights"),
        ({"coverage": 1.1}, "/coverage"),
        ({"hash_version": 3}, "/hash_version"),
        ({"unit": ""}, "/unit"),
        ({"fallback_unit": "user"}, "/fallback_unit"),
        ({"namespace": Namespace("home", 0.5, 0.5)}, "/namespace"),
        ({"first_open_phase": 1}, "/first_open_phase"),
        ({"forced": {"user-1": "gone"}}, "/forced"),
    ],
)
def test_an_impossible_definition_is_refused_at_the_field(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        experiment(**changes)
    assert [fault.pointer for fault in refused.value.errors] == [pointer]


def test_all_faults_of_a_definition_are_told_at_once() -> None:
    with pytest.raises(ValidationFailed) as refused:
        experiment(key="", coverage=-1.0, hash_version=0)
    assert len(refused.value.errors) == 3


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"variants": (Variant("a", 0.5), Variant("b", 0.3), Variant("c", 0.2))}, "/variants"),
        ({"variants": (Variant("a", 0.5), Variant("b", 0.5, {"diversity": 0.1}))}, "/variants/1/settings"),
        ({"namespace": Namespace("home", 0, 1)}, "/namespace"),
        ({"fallback_unit": "visitor"}, "/fallback_unit"),
        ({"forced": {"ann": "a"}}, "/forced"),
    ],
)
def test_what_makes_no_sense_in_a_holdout_is_refused(changes: dict[str, Any], pointer: str) -> None:
    plain = {"key": "quarter", "variants": (Variant("a", 0.5), Variant("b", 0.5)), "holdout": HoldOut()}
    with pytest.raises(ValidationFailed) as caught:
        Experiment(**{**plain, **changes})
    assert [fault.pointer for fault in caught.value.errors] == [pointer]


def test_a_phase_needs_a_weight_for_every_variant() -> None:
    with pytest.raises(ValidationFailed, match="one a variant, 3"):
        next_phase(experiment(), [0.5, 0.5])
