"""The filter language: what passes, what missing values do, and where a bad expression is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.recommender.catalogue import Catalogue
from services.recommender.filters import compile_filter
from services.recommender.filters.compiled import CACHE_SIZE
from services.recommender.filters.grammar import MAX_CHARACTERS, MAX_DEPTH
from shared.errors import FilterInvalid
from shared.schema import ItemField, Schema, UserField
from tests.unit.recommender.serving_app import Row

SCHEMA = Schema(
    item_fields={
        "brand": ItemField(type="string"),
        "is_adult": ItemField(type="boolean"),
        "android": ItemField(type="boolean"),
        "stock": ItemField(type="number"),
        "tags": ItemField(type="strings"),
        "released": ItemField(type="timestamp"),
        "secret": ItemField(type="number", filterable=False),
    },
    user_fields={
        "plan": UserField(type="string"),
        "age": UserField(type="number"),
        "blocked": UserField(type="strings"),
    },
)
NOW_US = 1_700_000_000_000_000
SHOE: dict[str, Any] = {"brand": "acme", "is_adult": False, "stock": 3, "tags": ["new", "red"], "android": True}
ROWS = [
    Row(0, "shoe", 10.0, categories=("shoes", "sale"), properties={**SHOE, "released": "2023-11-01T00:00:00Z"}),
    Row(1, "hat", 50.0, categories=("hats",), properties={"brand": "zeta", "is_adult": True, "stock": 50, "tags": []}),
    Row(2, "bare", None, item_type=None, currency=None),
    Row(3, "later", 99.5, categories=("shoes",), properties={"brand": "acme", "released": "2024-06-01T00:00:00Z"}),
]
USER = {"plan": "gold", "age": 30, "blocked": ["zeta"], "segments": ("vip",)}


def catalogue() -> Catalogue:
    made = Catalogue(SCHEMA)
    made.apply(ROWS)
    return made


def passing(text: str, user: dict[str, Any] | None = None, **values: Any) -> list[str]:
    ours, all_items = catalogue(), np.arange(len(ROWS), dtype=np.int32)
    told = USER if user is None else user
    mask = compile_filter(text, SCHEMA).mask(ours, all_items, told, values, NOW_US)
    assert mask.dtype == np.bool_
    return [ours.item_id(int(index)) for index in all_items[mask]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 50", ["shoe"]),
        ("price <= 50", ["shoe", "hat"]),
        ("50 < price", ["later"]),
        ("price = 10 OR price = 99.5", ["shoe", "later"]),
        ("price != 10", ["hat", "later"]),
        ("NOT price < 50", ["hat", "bare", "later"]),
        ("price IS NULL", ["bare"]),
        ("price IS NOT NULL", ["shoe", "hat", "later"]),
        ('category IN ("shoes", "hats")', ["shoe", "hat", "later"]),
        ('category NOT IN ("shoes")', ["hat"]),
        ('category = "sale"', ["shoe"]),
        ('categories != "sale"', ["hat", "later"]),
        ('tags CONTAINS "red"', ["shoe"]),
        ("tags IS NULL", ["hat", "bare", "later"]),
        ('brand = "acme" AND price > 50', ["later"]),
        ('brand = "nobody has it"', []),
        ('brand != "nobody has it"', ["shoe", "hat", "later"]),
        ("is_adult", ["hat"]),
        ("NOT is_adult", ["shoe", "bare", "later"]),
        ("is_adult = false", ["shoe"]),
        ("android", ["shoe"]),
        ("price = stock", ["hat"]),
        ("price > stock", ["shoe"]),
        ("brand = item_id", []),
        ('released < "2024-01-01T00:00:00Z"', ["shoe"]),
        ("released > now()", ["later"]),
        ("created_at < now()", ["shoe", "hat", "bare", "later"]),
        ('item_id IN ("hat", "who")', ["hat"]),
        ('item_id != "hat"', ["shoe", "bare", "later"]),
        ('title = "Title"', []),
        ('user.plan = "gold"', ["shoe", "hat", "bare", "later"]),
        ('user.plan = "gold" AND price > user.age', ["hat", "later"]),
        ("brand NOT IN user.blocked", ["shoe", "later"]),
        ("brand IN user.blocked", ["hat"]),
        ('user.segments CONTAINS "vip" AND is_adult', ["hat"]),
        ('user.segments CONTAINS "new"', []),
        ("stock = 1 OR price < 20", ["shoe"]),
        ("price < 50 and not is_adult", ["shoe"]),
        ("price < 20 OR price > 90 AND is_adult", ["shoe"]),
        ("(price < 20 OR price > 90) AND NOT is_adult", ["shoe", "later"]),
    ],
)  # fmt: skip
def test_what_passes(text: str, expected: list[str]) -> None:
    assert passing(text) == expected


def test_values_of_the_request_are_bound_by_name_and_lists_are_spread() -> None:
    assert passing("price < $limit", limit=20) == ["shoe"]
    assert passing('category IN ("hats", $more)', more=["sale"]) == ["shoe", "hat"]
    assert passing("brand IN $brands", brands=["zeta", "acme"]) == ["shoe", "hat", "later"]
    assert passing("brand NOT IN $brands", brands=[]) == ["shoe", "hat", "later"]
    assert passing("brand IN $brands", brands=[]) == []
    assert passing("released > $since", since="2024-01-01T00:00:00Z") == ["later"]


def test_what_the_profile_lacks_or_holds_in_another_type_is_missing() -> None:
    assert passing("price > user.age", user={}) == []
    assert passing("price > user.age", user={"age": "thirty"}) == []
    assert passing("brand NOT IN user.blocked", user={}) == ["shoe", "hat", "later"]
    assert passing("user.plan IS NULL", user={}) == ["shoe", "hat", "bare", "later"]


def test_items_that_the_catalogue_does_not_know_have_only_missing_values() -> None:
    unknown = np.array([-1, 4, 10_000, 2_000_000_000], np.int32)[1:]
    for text, expected in (("price < 50", False), ("price IS NULL", True), ('item_id != "hat"', False)):
        mask = compile_filter(text, SCHEMA).mask(catalogue(), unknown, USER, {}, NOW_US)
        assert mask.tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("price <", 7, "the end"),
        ("price < 50 AND", 14, "the end"),
        ("price < < 5", 8, ""),
        ("prize < 5", 0, "did you mean price?"),
        ("price < 5 AND prize < 6", 14, "did you mean price?"),
        ('price < "5"', 8, "number"),
        ("secret = 1", 0, "filterable"),
        ("price", 0, "compare it"),
        ('brand < "a"', 6, "numbers or timestamps"),
        ("user.salary > 5", 0, "user field"),
        ("plan = 5", 0, "user.plan"),
        ('released > "yesterday"', 11, "RFC 3339"),
        ("(price < 5", 10, ""),
        ("price < 5)", 9, ""),
        ('brand = "open', 8, ""),
        ("brand = $", 8, ""),
        ("$a = $b", 3, "type"),
        ("price ~ 5", 6, ""),
        ("price CONTAINS 5", 0, "list of strings"),
        ("", 0, ""),
    ],
)
def test_a_bad_expression_is_refused_at_its_character(text: str, position: int, words: str) -> None:
    with pytest.raises(FilterInvalid) as caught:
        compile_filter(text, SCHEMA)
    (fault,) = caught.value.errors
    assert (fault.pointer, fault.position) == ("/filter", position), caught.value.detail
    assert words in fault.message


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("price < $limit", {}),
        ("price < $limit", {"limit": "20"}),
        ("price < $limit", {"limit": [1, 2]}),
        ("price < $limit", {"limit": True}),
        ("brand IN $limit", {"limit": [5]}),
    ],
)
def test_a_value_that_is_missing_or_of_another_type_is_refused_by_name(text: str, values: dict[str, Any]) -> None:
    with pytest.raises(FilterInvalid) as caught:
        compile_filter(text, SCHEMA).bind(values)
    assert caught.value.errors[0].pointer == "/filter_values/limit"


def test_length_and_depth_are_bounded_and_deep_nesting_costs_no_stack() -> None:
    deep = "NOT " * (MAX_DEPTH + 1) + "is_adult"
    with pytest.raises(FilterInvalid, match="nested"):
        compile_filter(deep, SCHEMA)
    brackets = "(" * 1500 + "is_adult" + ")" * 1500
    assert passing(brackets) == ["hat"]
    with pytest.raises(FilterInvalid, match="characters"):
        compile_filter("price < 5 OR " * (MAX_CHARACTERS // 13 + 1) + "is_adult", SCHEMA)


def test_the_same_text_is_compiled_once() -> None:
    assert compile_filter("price < 51", SCHEMA) is compile_filter("price < 51", SCHEMA)
    assert CACHE_SIZE >= 256
    other = Schema(item_fields={"brand": ItemField(type="number")})
    compile_filter("brand < 5", other)
    with pytest.raises(FilterInvalid):
        compile_filter("brand < 5", SCHEMA)
