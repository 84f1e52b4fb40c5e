from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.features.items.content import ItemBody, ItemContent, ItemPatch
from services.features.items.times import format_time, parse_time
from services.features.items.validation import PROPERTIES_MAX_BYTES, check_content, check_patch, check_properties
from shared.schema import ItemField

FIELDS = {
    "brand": ItemField(type="string"),
    "tags": ItemField(type="strings"),
    "weight": ItemField(type="number"),
    "is_adult": ItemField(type="boolean"),
    "released": ItemField(type="timestamp"),
}


@given(st.datetimes())
def test_a_time_survives_the_way_out_and_in_to_the_microsecond(moment: object) -> None:
    text = f"{moment.isoformat()}Z"  # type: ignore[attr-defined]
    time_us = parse_time(text)
    assert time_us is not None
    assert parse_time(format_time(time_us)) == time_us


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("1970-01-01T00:00:00.0000019Z", 1),
    ],
)
def test_offsets_and_fractions_are_understood(text: str, time_us: int) -> None:
    assert parse_time(text) == time_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31 12:00:00Z",
        "2026-W05-6T12:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "٢٠٢٦-01-31T12:00:00Z",
        "2026-01-31T12:00:00Z\n",
    ],
)
def test_what_is_no_rfc_3339_time_is_not_guessed_at(text: str) -> None:
    assert parse_time(text) is None


@given(st.text(max_size=40))
def test_no_text_breaks_the_time_parser(text: str) -> None:
    assert parse_time(text) is None or isinstance(parse_time(text), int)


def test_properties_of_every_declared_type_are_accepted() -> None:
    properties = {"brand": "x", "tags": [], "weight": 1.5, "is_adult": True, "released": "2026-01-31T12:00:00+01:00"}
    assert check_properties(properties, FIELDS) == []


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("brand", 1, "wrong_type"),
        ("tags", "a", "wrong_type"),
        ("weight", True, "wrong_type"),
        ("weight", float("nan"), "wrong_type"),
        ("weight", float("inf"), "wrong_type"),
        ("is_adult", 1, "wrong_type"),
        ("released", 0, "wrong_type"),
        ("brand", None, "wrong_type"),
        ("a/b~c", "x", "undeclared_property"),
    ],
)
def test_a_property_that_does_not_fit_its_declaration_is_a_fault(name: str, value: object, code: str) -> None:
    (fault,) = check_properties({name: value}, FIELDS)
    assert fault.code == code
    assert "item_fields" in fault.message
    assert fault.pointer == "/properties/" + name.replace("~", "~0").replace("/", "~1")


def test_a_patch_may_take_away_a_property_that_is_no_longer_declared() -> None:
    assert check_patch(ItemPatch.model_validate({"properties": {"gone": None}}), FIELDS) == []


def test_properties_have_a_size() -> None:
    (fault,) = check_content(ItemContent(properties={"brand": "x" * PROPERTIES_MAX_BYTES}))
    assert (fault.pointer, fault.code) == ("/properties", "too_large")


def test_an_empty_patch_changes_nothing() -> None:
    content = ItemBody.model_validate({"title": "a", "properties": {"brand": "x"}, "embeddings": {"e": [1]}}).content()
    assert content.patched(ItemPatch()) == content


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0, True, "1"])
def test_a_price_is_a_finite_number_from_zero_up(price: object) -> None:
    with pytest.raises(ValidationError):
        ItemBody.model_validate({"price": price})


@pytest.mark.parametrize("element", [float("nan"), float("-inf"), 4e38, True, "1", None])
def test_an_embedding_holds_numbers_that_float32_can_hold(element: object) -> None:
    with pytest.raises(ValidationError):
        ItemBody.model_validate({"embeddings": {"text": [element]}})


def test_a_patch_may_not_leave_more_embeddings_than_a_put_could() -> None:
    old = ItemBody.model_validate({"embeddings": {f"e{n}": [1.0] for n in range(8)}}).content()
    patched = old.patched(ItemPatch.model_validate({"embeddings": {"one_more": [1.0]}}))
    assert [fault.pointer for fault in check_content(patched)] == ["/embeddings"]
    swapped = old.patched(ItemPatch.model_validate({"embeddings": {"one_more": [1.0], "e0": None}}))
    assert check_content(swapped) == []
