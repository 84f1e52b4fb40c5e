"""A request in the experiments of its scene: targeting, sticky buckets, what is kept, and what it costs."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from services.recommender.domain import Query
from services.recommender.experiments.applying import Asked, apply
from services.recommender.experiments.definitions import Status
from services.recommender.experiments.enrolling import Known, enrol, exposures
from services.recommender.experiments.holdouts import holding
from services.recommender.experiments.live import Live, LiveExperiment, SceneExperiments, Shipped
from services.recommender.experiments.measures import NoveltyTable, intra_list_diversity
from services.recommender.filters import compile_filter, compile_targeting
from services.recommender.serving.buckets import merged, sticky_key, to_remember
from shared.errors import FilterInvalid
from shared.schema import Scene, Schema, UserField
from tests.unit.experiments.written import registered, varying

SCHEMA = Schema(
    scenes={"home": Scene(weights={"click": 1.0}, filter="price < 50"), "cart": Scene(weights={"click": 1.0})},
    user_fields={"country": UserField(type="string"), "age": UserField(type="number")},
)
NOW_US = 1_700_000_000_000_000


def running(key: str = "mmr", **changes: Any) -> LiveExperiment:
    one = registered(key, **changes)
    return LiveExperiment.of(replace(one, definition=replace(one.definition, status=Status.RUNNING)), SCHEMA)


def scene_of(*experiments: LiveExperiment, shipped: tuple[Shipped, ...] = (), name: str = "home") -> SceneExperiments:
    found = Live.of(experiments, shipped, SCHEMA.scenes).scene(name)
    assert found is not None
    return found


def known(user_id: str = "ann", **changes: Any) -> Known:
    values: dict[str, Any] = {"units": {"user": user_id}, "context": {}, "now_us": NOW_US, "user": {}}
    return Known(**{**values, **changes})


def query(**changes: Any) -> Query:
    values: dict[str, Any] = {
        "user_key": "u:ann",
        "scene": "home",
        "weights": {"click": 1.0},
        "count": 10,
        "deadline": 100.068,
        "now_us": NOW_US,
        "seed": 1,
    }
    return Query(**{**values, **changes})


ASKED = Asked(arrived=100.0, diversity=False, deadline=False)


def rules(text: str) -> Any:
    return compile_filter(text, SCHEMA)


@pytest.fixture(scope="module")
def sdk() -> Any:
    """Under CI a missing package is a failure."""
    return import_module("growthbook") if os.environ.get("CI") else pytest.importorskip("growthbook")


def test_a_team_on_growthbook_gets_the_same_variants_here(sdk: Any) -> None:
    scene = scene_of(running("three", coverage=0.8))
    theirs = sdk.Experiment(key="three", variations=["control", "diverse"], coverage=0.8, hashVersion=2, seed="three")
    for number in range(500):
        with_sdk = sdk.GrowthBook(attributes={"id": f"user-{number}"}).run(theirs)
        ours = enrol(scene, known(f"user-{number}"))
        assert [one.variant for one in ours] == ([with_sdk.value] if with_sdk.inExperiment else [])


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('context.device = "phone"', True),
        ('context.device IN ("tablet", "phone")', True),
        ('context.device NOT IN ("phone")', False),
        ("context.visits > 3", True),
        ("context.visits = 3", False),
        ("context.signed_in", True),
        ("context.nothing IS NULL AND context.device IS NOT NULL", True),
        ('context.nothing = "phone"', False),
        ('user.country = "at" AND NOT user.segments CONTAINS "vip"', True),
        ('"vip" = context.device OR user.age >= 18', True),
    ],
)
def test_targeting_asks_the_context_and_the_profile(text: str, holds: bool) -> None:
    targeting = compile_targeting(text, SCHEMA)
    context = {"device": "phone", "visits": 5.0, "signed_in": True}
    user = {"country": "at", "age": 30, "segments": ("new",)}
    assert targeting.holds(user, context, NOW_US) is holds
    assert targeting.reads_user is ("user." in text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("price < 5", "targeting knows no items"),
        ("user.shoe = 4", "no user field"),
        ("user.age > $least", "no filter_values"),
    ],
)
def test_targeting_that_cannot_be_decided_is_refused(text: str, says: str) -> None:
    with pytest.raises(FilterInvalid, match=says):
        compile_targeting(text, SCHEMA)


def test_context_fields_are_for_targeting_only() -> None:
    with pytest.raises(FilterInvalid, match="targeting of experiments"):
        compile_filter('context.device = "phone"', SCHEMA)


def test_an_experiment_that_needs_an_unknown_profile_leaves_the_request_out() -> None:
    scene = scene_of(
        running("vips", targeting='NOT user.country = "at"'), running("all", variants=varying(ranker="model"))
    )
    assert scene.reads_user
    assert [one.experiment for one in enrol(scene, known(user=None))] == ["all"]
    assert {one.experiment for one in enrol(scene, known())} == {"vips", "all"}


def test_an_experiment_runs_in_its_own_scenes_only() -> None:
    live = Live.of([running(scenes=["cart"])], (), SCHEMA.scenes)
    assert live.scene("home") is None
    assert live.scene("cart") is not None


def test_who_signs_in_keeps_the_variant_of_the_visitor() -> None:
    scene = scene_of(running(fallback_unit="visitor"))
    seen: dict[str, bytes] = {}
    for number in range(50):
        visitor = {"visitor": f"v{number}"}
        first = enrol(scene, known(units=visitor, buckets={}))
        seen |= to_remember(first, seen)
        both = {"user": f"u{number}", **visitor}
        signed_in = enrol(scene, known(units=both, buckets=merged(both, seen)))
        assert signed_in[0].variant == first[0].variant
        seen |= to_remember(signed_in, seen)
        assert sticky_key("user", f"u{number}") in seen, "the next visit may come without the visitor's id"
        alone = {"user": f"u{number}"}
        assert enrol(scene, known(units=alone, buckets=merged(alone, seen)))[0].variant == first[0].variant
        assert to_remember(signed_in, seen) == {}


def test_without_redis_a_sticky_experiment_leaves_the_request_out() -> None:
    assert enrol(scene_of(running(fallback_unit="visitor")), known(buckets=None)) == ()


def test_a_forced_variant_is_served_but_is_no_exposure() -> None:
    scene = scene_of(running(forced={"ann": "diverse"}))
    (one,) = enrol(scene, known())
    assert one.variant == "diverse"
    assert exposures(scene, (one,), known(), "u:ann") == []


def test_an_exposure_says_segment_and_simulation() -> None:
    scene = scene_of(running(segment_by="context.device"))
    asked = known(context={"device": "phone" * 20, "silkrec_simulated": True})
    (row,) = exposures(scene, enrol(scene, asked), asked, "u:ann")
    assert row["unit"] == "u:ann"
    assert row["segment"] == ("phone" * 20)[:64]
    assert row["simulated"] is True
    (row,) = exposures(scene, enrol(scene, known(context={"silkrec_simulated": "true"})), known(), "u:ann")
    assert (row["segment"], row["simulated"]) == ("", False)


def test_a_variant_stands_above_the_request_and_shipped_settings_below_it() -> None:
    asked = Asked(100.0, diversity=True, deadline=True)
    mine = query(diversity=0.1, deadline=100.03)
    settings = {"diversity": 0.9, "deadline_ms": 60}
    assert apply(mine, settings, asked, rules, shipped=True).diversity == 0.1
    varied = apply(mine, settings, asked, rules, shipped=False)
    assert varied.diversity == 0.9
    assert varied.deadline == 100.03, "nobody waits longer than the caller said"
    assert apply(mine, settings, ASKED, rules, shipped=False).deadline == pytest.approx(100.06)


def test_rules_stand_beside_the_filter_of_the_scene() -> None:
    scene_filter = rules("price < 50")
    varied = apply(query(scene_filter=scene_filter), {"rules": "price > 10"}, ASKED, rules, shipped=False)
    assert varied.scene_filter is not None
    assert varied.scene_filter.text == "(price < 50) AND (price > 10)"


def test_a_callers_own_list_is_neither_cut_nor_drawn() -> None:
    settings = {"sources": ["popular"], "candidates": 1, "exploration": 0.5, "hide_seen": True, "diversity": 0.3}
    mine = query(input_list=np.arange(3, dtype=np.int32), hide_seen=False)
    varied = apply(mine, settings, ASKED, rules, shipped=False)
    assert (varied.sources, varied.candidates, varied.exploration, varied.hide_seen) == (None, None, 0.0, False)
    assert varied.diversity == 0.3


def test_of_two_shipped_settings_the_later_one_counts() -> None:
    entries = (
        Shipped("a", "v", frozenset(), {"diversity": 0.2, "ranker": "model"}),
        Shipped("b", "v", frozenset({"home"}), {"diversity": 0.7}),
    )
    assert scene_of(shipped=entries).shipped == {"diversity": 0.7, "ranker": "model"}
    assert scene_of(shipped=entries, name="cart").shipped == {"diversity": 0.2, "ranker": "model"}


def test_what_is_shipped_while_a_holdout_lasts_is_kept_from_its_units_alone() -> None:
    rest = [{"key": "held_out", "weight": 0.5}, {"key": "rest", "weight": 0.5}]
    live = replace(running("quarter", variants=rest, holdout={"namespace": "home"}), started_at_us=100)
    entries = (
        Shipped("before", "v", frozenset(), {"diversity": 0.1}, "home", 99),
        Shipped("since", "v", frozenset(), {"diversity": 0.7}, "home", 100),
        Shipped("elsewhere", "v", frozenset(), {"ranker": "retrieval"}, "cart", 200),
    )
    scene = scene_of(live, running(namespace={"key": "home", "start": 0, "end": 1}), shipped=entries)
    met: dict[str, set[str]] = {}
    for number in range(50):
        units = {"user": f"user-{number}"}
        held_by = holding(scene.holdouts, units, NOW_US)
        found = {one.experiment: one.variant for one in enrol(scene, known(units=units, held_by=held_by))}
        assert ("mmr" in found) == (found["quarter"] == "rest")
        shipped = scene.shipped_to(held_by)
        assert shipped["ranker"] == "retrieval"
        assert shipped["diversity"] == (0.1 if held_by else 0.7)
        met.setdefault(str(found["quarter"]), set()).add(units["user"])
    assert set(met) == {"held_out", "rest"}


def test_diversity_is_one_minus_the_mean_cosine_of_all_pairs() -> None:
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(30, 16)).astype(np.float32)
    vectors[4] = 0
    unit = np.delete(vectors, 4, 0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    pairs = cosine[np.triu_indices(29, 1)]
    assert intra_list_diversity(vectors) == pytest.approx(1 - pairs.mean(), abs=1e-5)
    assert intra_list_diversity(vectors[4:6]) is None


def test_novelty_is_the_mean_information_of_the_shown_items() -> None:
    table = NoveltyTable(np.array([3, 1], np.int32), np.array([3.0, 1.0], np.float32))
    assert table.mean(np.array([1], np.int32)) == pytest.approx(2.0)
    assert table.mean(np.array([1, 3], np.int32)) == pytest.approx((2 - np.log2(0.75)) / 2)
    assert table.mean(np.array([99, 0], np.int32)) == pytest.approx(2.0), "as rare as the rarest that is known"
    assert table.mean(np.array([], np.int32)) is None


def test_enrolment_costs_at_most_twenty_microseconds_an_experiment() -> None:
    plain = [running(f"plain-{n}", variants=varying(diversity=0.1)) for n in range(5)]
    scene = scene_of(*plain)
    asked = [known(f"user-{n}") for n in range(500)]
    best = min(_seconds(scene, asked) for _ in range(5))
    assert best / len(asked) / len(plain) < 20e-6


def _seconds(scene: SceneExperiments, asked: list[Known]) -> float:
    begin = time.perf_counter()
    for one in asked:
        enrol(scene, one)
    return time.perf_counter() - begin
