"""Content tokens: an item that comes later gets what training would have given it, by what its model's folder keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.training.content import EXACT_NUMBERS, Content, Tokeniser, feature_types
from shared.schema import ItemField, Schema

SCHEMA = Schema(
    item_fields={
        "brand": ItemField(type="string", feature=True),
        "weight": ItemField(type="number", feature=True),
        "tags": ItemField(type="strings", feature=True),
        "vegan": ItemField(type="boolean", feature=True),
        "made_at": ItemField(type="timestamp", feature=True),
        "shelf": ItemField(type="string"),
    }
)


@dataclass(frozen=True)
class Item:
    item_index: int
    title: str | None = None
    categories: tuple[str, ...] = ()
    properties: dict[str, Any] = field(default_factory=dict)


words = st.sampled_from(["ring", "gold ring", "a small BOX", "", "Dose für Tee", "\x00"])
properties = st.fixed_dictionaries(
    {},
    optional={
        "brand": st.sampled_from(["", "acme", "bolt", "7"]),
        "weight": st.one_of(st.integers(-3, 3), st.floats(-1e300, 1e300)),
        "tags": st.lists(st.sampled_from(["new", "old", "x"]), max_size=3),
        "vegan": st.booleans(),
        "made_at": st.sampled_from(["2024-02-29T00:00:00Z", "2025-01-01T12:00:00+02:00", "1970-01-01T00:00:00Z"]),
        "shelf": st.just("a7"),
    },
)
catalogues = st.lists(
    st.tuples(st.none() | words, st.lists(st.sampled_from(["home", "tea"]), max_size=2), properties), max_size=30
).map(lambda rows: [Item(index, title, tuple(names), given) for index, (title, names, given) in enumerate(rows)])


@settings(max_examples=150, deadline=None)
@given(catalogues, st.integers(1, 4), st.integers(2, 40))
def test_what_the_folder_keeps_gives_every_item_the_tokens_that_training_gave(
    items: list[Item], width: int, most: int
) -> None:
    content = Content.of(items, SCHEMA, vocabulary=len(items), width=width, most=most)
    kept = Tokeniser.loads(content.tokeniser.dumps(), width=0, features={})
    for item in items:
        row = content.table[item.item_index]
        assert kept.encode(item) == tuple(row[row > 0])
        assert kept.unfit(item) == []


def test_many_numbers_fall_into_the_buckets_of_training() -> None:
    items = [Item(index, properties={"weight": index / 7}) for index in range(2 * EXACT_NUMBERS)]
    content = Content.of(items, SCHEMA, vocabulary=len(items), width=2, most=1000)
    kept = Tokeniser.loads(content.tokeniser.dumps(), width=0, features={})
    assert len(kept.tokens) == 16
    rows = [kept.encode(Item(999, properties={"weight": value})) for value in (-1e9, 0.0, 20.0, 20.01, 1e9)]
    assert rows[0] == rows[1] == tuple(content.table[0][:1])
    assert rows[2] == rows[3] == tuple(content.table[140][:1])
    assert rows[4] == tuple(content.table[len(items) - 1][:1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", "12"),
        ("weight", True),
        ("weight", float("nan")),
        ("weight", 10**400),
        ("brand", 12),
        ("brand", ["acme"]),
        ("tags", "new"),
        ("tags", [1]),
        ("vegan", "yes"),
        ("made_at", "yesterday"),
        ("made_at", 1700000000),
    ],
)
def test_a_value_of_another_type_is_named_and_becomes_no_token(name: str, value: object) -> None:
    items = [Item(0, "ring", properties={"weight": 1, "made_at": "2024-02-29T00:00:00Z"})] * 2
    tokeniser = Content.of(items, SCHEMA, vocabulary=1, width=8, most=100).tokeniser
    item = Item(5, "ring", properties={name: value})
    assert tokeniser.unfit(item) == [name]
    assert tokeniser.encode(item) == tokeniser.encode(Item(5, "ring"))


def test_folders_from_before_buckets_were_kept_tell_all_but_the_numbers() -> None:
    old = json.dumps(["category=tea", "brand=acme", "weight=1", "title=ring"])
    kept = Tokeniser.loads(old, width=3, features=feature_types(SCHEMA))
    item = Item(9, "A ring", ("tea",), {"brand": "acme", "weight": 2.0, "shelf": "a7"})
    assert kept.encode(item) == (1, 2, 4)
    assert kept.unfit(item) == ["weight"]


def test_a_format_of_a_later_release_is_a_model_without_tokens() -> None:
    kept = Tokeniser.loads(json.dumps({"format": 2, "tokens": {"trie": "x"}}), width=3, features={})
    assert kept.encode(Item(9, "A ring", ("tea",))) == ()


def test_without_content_the_table_holds_no_token() -> None:
    content = Content.none(vocabulary=3, width=2)
    assert (content.vocabulary, content.table.shape) == (1, (4, 2))
    assert not np.any(content.table)
