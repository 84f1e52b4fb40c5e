from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.features.users.cursor import unwrap, wrap
from services.features.users.validation import PROFILE_MAX_BYTES, check_profile
from shared.errors import ValidationFailed
from shared.schema import UserField

FIELDS = {
    "country": UserField(type="string"),
    "age": UserField(type="number"),
    "member": UserField(type="boolean"),
    "likes": UserField(type="strings"),
    "since": UserField(type="timestamp"),
}
GOOD = {"country": "at", "age": 41.5, "member": True, "likes": ["a", "b"], "since": "2026-01-31T12:00:00Z"}


def test_a_profile_that_fits_its_declaration_has_no_faults() -> None:
    assert check_profile(GOOD, ["gold", "vienna 1"], FIELDS) == []


def test_an_undeclared_property_is_refused_with_the_nearest_name() -> None:
    (fault,) = check_profile({"contry": "at"}, [], FIELDS)
    assert (fault.pointer, fault.code) == ("/properties/contry", "undeclared_property")
    assert "country" in fault.message


def test_a_property_name_is_escaped_in_its_pointer() -> None:
    (fault,) = check_profile({"a/b~c": 1}, [], FIELDS)
    assert fault.pointer == "/properties/a~1b~0c"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("country", 1),
        ("age", "41"),
        ("age", True),
        ("age", math.nan),
        ("age", math.inf),
        ("member", 1),
        ("likes", "a"),
        ("likes", ["a", 1]),
        ("since", "2026-01-31T12:00:00"),
        ("since", "yesterday"),
        ("since", 0),
        ("country", None),
    ],
)
def test_a_value_of_another_type_is_refused_at_its_place(name: str, value: Any) -> None:
    (fault,) = check_profile({name: value}, [], FIELDS)
    assert (fault.pointer, fault.code) == (f"/properties/{name}", "wrong_type")


def test_a_null_is_allowed_only_where_it_takes_a_property_away() -> None:
    assert check_profile({"age": None}, [], FIELDS, nulls=True) == []


def test_a_profile_beyond_its_size_is_refused() -> None:
    (fault,) = check_profile({"country": "x" * PROFILE_MAX_BYTES}, [], FIELDS)
    assert fault.code == "too_large"


def test_segments_are_ids_and_not_without_number() -> None:
    assert [f.pointer for f in check_profile({}, ["ok", "no/no", ""], FIELDS)] == ["/segments/1", "/segments/2"]
    assert [f.code for f in check_profile({}, ["s"] * 65, FIELDS)] == ["too_many"]


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=258))
def test_a_cursor_gives_back_what_was_wrapped(key: str) -> None:
    assert unwrap("users", wrap("users", key)) == key


@given(st.data())
def test_a_cursor_with_any_character_changed_is_refused(data: st.DataObject) -> None:
    cursor = wrap("users", "u:somebody")
    place = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.sampled_from([c for c in "AZaz09-_!=%" if c != cursor[place]]))
    with pytest.raises(ValidationFailed):
        unwrap("users", cursor[:place] + other + cursor[place + 1 :])


@given(st.text(max_size=60))
def test_no_text_that_was_not_wrapped_is_a_cursor(text: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        unwrap("users", text)
    assert caught.value.errors[0].pointer == "/cursor"


def test_the_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(ValidationFailed):
        unwrap("users", wrap("items", "u:somebody"))
