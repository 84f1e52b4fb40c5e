"""Whole experiments, run by GrowthBook's SDK beside ours: the same units, variants and sticky buckets."""

from __future__ import annotations

import os
import random
from importlib import import_module
from typing import Any

import pytest

from services.recommender.experiments.assignment import Namespace
from services.recommender.experiments.definitions import Experiment, Status, Variant
from services.recommender.experiments.enrolment import Reason, assign
from services.recommender.experiments.sticky import document_key, merge

KEYS = ("control", "warm", "bold")


@pytest.fixture(scope="module")
def sdk() -> Any:
    """Under CI a missing package is a failure."""
    return import_module("growthbook") if os.environ.get("CI") else pytest.importorskip("growthbook")


def drawn(draw: random.Random) -> Experiment:
    phase = draw.randint(0, 2)
    start = draw.choice([0.0, 0.3])
    return Experiment(
        key=f"experiment-{draw.randint(0, 20)}",
        variants=tuple(Variant(key, weight) for key, weight in zip(KEYS, (0.5, 0.2, 0.3), strict=True)),
        status=draw.choice([Status.RUNNING] * 4 + [Status.DRAFT, Status.STOPPED]),
        unit="id",
        fallback_unit=draw.choice([None, "visitor"]),
        coverage=draw.choice([1.0, 0.6]),
        seed=draw.choice(["", "another"]),
        hash_version=draw.choice([1, 2]),
        namespace=draw.choice([None, Namespace("home", start, start + 0.5)]),
        phase=phase,
        first_open_phase=draw.randint(0, phase),
    )


def met(draw: random.Random, one: Experiment) -> dict[str, str]:
    """What the unit may have met: variants of some phases, once in a while one that is gone."""
    phases = [phase for phase in range(3) if draw.random() < 0.3]
    return {f"{one.key}__{phase}": draw.choice([*KEYS, "gone"]) for phase in phases}


def theirs(sdk: Any, one: Experiment, units: dict[str, str], documents: Any, forced: dict[str, str]) -> Any:
    service = None
    if documents is not None:
        service = sdk.InMemoryStickyBucketService()
        for unit, assignments in documents.items():
            service.save_assignments({"attributeName": unit, "attributeValue": units[unit], "assignments": assignments})
    client = sdk.GrowthBook(
        attributes=units,
        sticky_bucket_service=service,
        sticky_bucket_identifier_attributes=["id", "visitor"],
        forcedVariations={key: KEYS.index(variant) for key, variant in forced.items()},
    )
    client.refresh_sticky_buckets(force=True)
    return client.run(
        sdk.Experiment(
            key=one.key,
            variations=list(KEYS),
            meta=[{"key": key} for key in KEYS],
            weights=[variant.weight for variant in one.variants],
            coverage=one.coverage,
            seed=one.seed or None,
            hashVersion=one.hash_version,
            hashAttribute=one.unit,
            fallbackAttribute=one.fallback_unit,
            namespace=one.namespace,
            status=one.status.value,
            bucketVersion=one.phase,
            minBucketVersion=one.first_open_phase,
        )
    )


def test_the_sdk_enrols_the_same_units_in_the_same_variants(sdk: Any) -> None:
    draw = random.Random(8)
    seen = set[Reason]()
    for _ in range(3_000):
        one = drawn(draw)
        units = {"id": draw.choice([f"user-{draw.getrandbits(30)}"] * 5 + [""]), "visitor": f"v{draw.getrandbits(30)}"}
        documents = draw.choice([None, {"id": met(draw, one), "visitor": met(draw, one)}])
        if documents is not None and (not units["id"] or one.fallback_unit is None):
            del documents["id" if not units["id"] else "visitor"]
        forced = draw.choice([{}] * 5 + [{one.key: draw.choice(KEYS)}])
        sticky = None if documents is None else merge(documents.get("id", {}), documents.get("visitor", {}))
        ours = assign(one, units, sticky=sticky, forced=forced)
        result = theirs(sdk, one, units, documents, forced)
        seen.add(ours.reason)
        assert (ours.variant is not None) == result.inExperiment, (one, units, documents, ours)
        if ours.variant is not None:
            assert (ours.variant, ours.is_data) == (result.key, result.hashUsed)
            assert (ours.reason is Reason.STICKY) == result.stickyBucketUsed
    left = set(Reason) - {Reason.HELD_OUT, Reason.NOT_TARGETED, Reason.VARIANT_KILLED}
    assert seen == left  # the SDK has no word for the other three


def test_a_sticky_document_is_the_sdks(sdk: Any) -> None:
    one = Experiment(
        key="home", variants=(Variant("control", 0.5), Variant("warm", 0.5)), status=Status.RUNNING, unit="id", phase=3
    )
    service = sdk.InMemoryStickyBucketService()
    client = sdk.GrowthBook(attributes={"id": "user-1"}, sticky_bucket_service=service)
    client.run(
        sdk.Experiment(
            key="home", variations=[0, 1], meta=[{"key": "control"}, {"key": "warm"}], hashVersion=2, bucketVersion=3
        )
    )
    remember = assign(one, {"id": "user-1"}, sticky={}).remember
    assert remember is not None
    document = service.docs[document_key("id", "user-1")]
    assert document["assignments"] == dict([remember])
