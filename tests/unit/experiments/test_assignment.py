"""GrowthBook's spec, by its own vectors (`cases.json`, spec 0.7) and against its SDK. MIT, a development dependency."""

from __future__ import annotations

import os
import random
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.recommender.experiments.assignment import (
    NOT_IN_EXPERIMENT,
    Range,
    bucket_ranges,
    choose_variant,
    equal_weights,
    fnv1a_32,
    hash_unit,
    in_namespace,
)

HASHES: list[tuple[str, str, int, float | None]] = [
    ("", "a", 1, 0.22),
    ("", "b", 1, 0.077),
    ("b", "a", 1, 0.946),
    ("ef", "d", 1, 0.652),
    ("asdf", "8952klfjas09ujk", 1, 0.549),
    ("", "123", 1, 0.011),
    ("", '___)((*":&', 1, 0.563),
    ("seed", "a", 2, 0.0505),
    ("seed", "b", 2, 0.2696),
    ("foo", "ab", 2, 0.2575),
    ("foo", "def", 2, 0.2019),
    ("89123klj", "8952klfjas09ujkasdf", 2, 0.124),
    ("90850943850283058242805", "123", 2, 0.7516),
    ("()**(%$##$%#$#", '___)((*":&', 2, 0.0128),
    ("abc", "def", 99, None),
]
RANGES: list[tuple[float, list[float], list[Range]]] = [
    (1, [0.5, 0.5], [(0, 0.5), (0.5, 1)]),
    (0.5, [0.5, 0.5], [(0, 0.25), (0.5, 0.75)]),
    (0, [0.5, 0.5], [(0, 0), (0.5, 0.5)]),
    (1, [0.25] * 4, [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]),
    (1, [0.4, 0.6], [(0, 0.4), (0.4, 1)]),
    (1, [0.2, 0.3, 0.5], [(0, 0.2), (0.2, 0.5), (0.5, 1)]),
    (0.2, [0.2, 0.3, 0.5], [(0, 0.04), (0.2, 0.26), (0.5, 0.6)]),
    (-0.2, [0.5, 0.5], [(0, 0), (0.5, 0.5)]),
    (1.5, [0.5, 0.5], [(0, 0.5), (0.5, 1)]),
    (1, [0.4, 0.1], [(0, 0.5), (0.5, 1)]),
    (1, [0.7, 0.6], [(0, 0.5), (0.5, 1)]),
    (1, [0.4, 0.5999], [(0, 0.4), (0.4, 0.9999)]),
]
NAMESPACES = [
    ("1", "namespace1", False),
    ("2", "namespace1", False),
    ("3", "namespace1", False),
    ("4", "namespace1", False),
    ("1", "namespace2", False),
    ("2", "namespace2", False),
    ("3", "namespace2", True),
    ("4", "namespace2", True),
]
TEXTS = st.text(st.characters(codec=None), max_size=20)


@pytest.fixture(scope="module")
def sdk() -> Any:
    """The SDK's functions. Under CI a missing package is a failure."""
    name = "growthbook.core"
    return import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


@pytest.mark.parametrize(("seed", "value", "version", "expected"), HASHES)
def test_the_hash_is_that_of_the_spec(seed: str, value: str, version: int, expected: float | None) -> None:
    assert hash_unit(seed, value, version) == expected


@pytest.mark.parametrize(("text", "expected"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_fnv_1a_gives_the_published_values(text: str, expected: int) -> None:
    assert fnv1a_32(text) == expected


@pytest.mark.parametrize("character", ["é", "中"])
def test_a_code_unit_beyond_ascii_is_one_step_of_the_hash(character: str) -> None:
    assert fnv1a_32(character) == (0x811C9DC5 ^ ord(character)) * 0x01000193 % 2**32


def test_a_character_outside_the_basic_plane_counts_as_its_two_surrogates() -> None:
    assert fnv1a_32("\U0001f600") == fnv1a_32("\ud83d\ude00") != fnv1a_32("\ud83d")


@pytest.mark.parametrize(("coverage", "weights", "expected"), RANGES)
def test_ranges_are_those_of_the_spec(coverage: float, weights: list[float], expected: list[Range]) -> None:
    ranges = bucket_ranges(coverage, weights)
    assert [(round(start, 9), round(end, 9)) for start, end in ranges] == expected


@pytest.mark.parametrize(
    ("n", "ranges", "expected"),
    [
        (0.2, [(0, 0.5), (0.5, 1)], 0),
        (0.2, [(0, 0.1), (0.5, 0.6)], NOT_IN_EXPERIMENT),
        (0.5, [(0, 0.5), (0.5, 0.5), (0.5, 1)], 2),
        (0.5, [(0, 0.5), (0.5, 1)], 1),
        (1.0, [(0, 0.5), (0.5, 1)], NOT_IN_EXPERIMENT),
    ],
)
def test_a_range_holds_its_start_and_not_its_end(n: float, ranges: list[Range], expected: int) -> None:
    assert choose_variant(n, ranges) == expected


@pytest.mark.parametrize(("unit", "key", "first_part"), NAMESPACES)
def test_a_unit_is_in_one_part_of_a_namespace(unit: str, key: str, first_part: bool) -> None:
    assert in_namespace(unit, (key, 0, 0.4)) is first_part
    assert in_namespace(unit, (key, 0.4, 1)) is not first_part


@given(TEXTS, TEXTS, st.sampled_from([1, 2, 3]))
def test_the_sdk_hashes_alike_whatever_the_text(sdk: Any, seed: str, value: str, version: int) -> None:
    assert hash_unit(seed, value, version) == sdk.gbhash(seed, value, version)


def test_the_sdk_gives_the_same_variant_to_twenty_thousand_units(sdk: Any) -> None:
    draw = random.Random(4)
    for number in range(20_000):
        count = draw.randint(2, 5)
        weights = [draw.random() for _ in range(count)]
        weights = [weight / sum(weights) * draw.choice([1, 1, 1, 0.5, 1.005]) for weight in weights]
        coverage, version = draw.uniform(-0.2, 1.2), draw.choice([1, 2])
        seed, value = f"experiment-{number % 97}", f"user-{draw.getrandbits(40)}é"
        theirs = sdk.getBucketRanges(count, coverage, weights)
        ours = bucket_ranges(coverage, weights)
        n = hash_unit(seed, value, version)
        assert list(ours) == theirs
        assert n is not None
        assert n == sdk.gbhash(seed, value, version)
        assert choose_variant(n, ours) == sdk.chooseVariation(n, theirs)
        start, end = sorted([draw.random(), draw.random()])
        space = (f"space-{number % 7}", start, end)
        assert in_namespace(value, space) == sdk.inNamespace(value, space)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 6))
def test_raising_the_coverage_only_adds_units(low: float, high: float, count: int) -> None:
    low, high = sorted([low, high])
    narrow, wide = bucket_ranges(low, equal_weights(count)), bucket_ranges(high, equal_weights(count))
    assert all(a == b and narrow_end <= end for (a, narrow_end), (b, end) in zip(narrow, wide, strict=True))


def test_buckets_are_even_and_those_of_two_experiments_are_independent() -> None:
    units = [f"user-{number}" for number in range(20_000)]
    one = [hash_unit("one", unit, 2) or 0.0 for unit in units]
    other = [hash_unit("two", unit, 2) or 0.0 for unit in units]
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(one, other, strict=True)) / len(units)
    assert abs(sum(a < 0.5 for a in one) / len(units) - 0.5) < 4 * 0.5 / len(units) ** 0.5
    assert abs(both - 0.25) < 4 * 0.433 / len(units) ** 0.5
