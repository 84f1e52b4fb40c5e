"""Cells of any file as ids, numbers and times."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.features.bulk.events import ids, resolve_actions
from services.features.bulk.values import Numbers, as_array, decide_unit, numbers, texts, times_us
from services.features.items.times import format_time
from shared.actions import ActionTable
from shared.identity import is_id
from shared.schema import Schema

ACTIONS = ActionTable.from_schema(Schema())


def array(column: Any, *, empty_is_missing: bool = True) -> pa.Array:
    return as_array(column, empty_is_missing=empty_is_missing)


@given(st.lists(st.text(max_size=300) | st.from_regex(r"[!-~ ]{1,12}", fullmatch=True), min_size=1))
def test_ids_are_what_the_api_takes_as_ids(values: list[str]) -> None:
    encodable = [value.encode("utf-8", "replace").decode() for value in values]
    assert ids(pa.array(encodable, pa.string())).tolist() == [is_id(value) for value in encodable]


@given(st.lists(st.tuples(st.sampled_from([*ACTIONS.event_types, "unknown"]), st.none() | st.floats(-10, 10))))
def test_actions_are_what_the_action_table_makes_of_them(events: list[tuple[str, float | None]]) -> None:
    known = np.array([value is not None for _, value in events], bool)
    value = Numbers(np.array([value or 0.0 for _, value in events]), known, known)
    found = resolve_actions(ACTIONS, pa.array([kind for kind, _ in events], pa.string()), value)
    expected = [ACTIONS.resolve(kind, number) for kind, number in events]
    assert found.tolist() == [-1 if action is None else action.code for action in expected]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["a", "", None], ["a", None, None]),
        ([1, 2, None], ["1", "2", None]),
        ([1.0, float("nan"), 2.5], ["1", None, None]),
        (pa.array(["x", "x", None]).dictionary_encode(), ["x", "x", None]),
        (pa.array([b"x", b"\xff"]), ["x", "�"]),
        (pa.array([Decimal(12), Decimal(13)]), ["12", "13"]),
        (pa.array(["y"], pa.large_string()), ["y"]),
        ([1, "a"], ["1", "a"]),
        ([True, "a"], ["\0True", "a"]),
        ([None, None], [None, None]),
        ([True, False], [None, None]),
    ],
)
def test_ids_of_any_type_become_texts(column: Any, expected: list[str | None]) -> None:
    assert texts(array(column)).values.to_pylist() == expected


def test_a_cell_that_is_no_id_is_there_but_not_sound() -> None:
    read = texts(array([1.5, 2.0, float("nan")]))
    assert (read.present.tolist(), read.sound.tolist()) == ([True, True, False], [False, True, False])


@pytest.mark.parametrize(
    ("column", "values", "sound"),
    [
        (["1", " 2.5 ", "1e3", "-.5"], [1.0, 2.5, 1000.0, -0.5], [True] * 4),
        (["x", "nan", "inf", "1_0", "0x1", "1e999"], [0.0] * 6, [False] * 6),
        ([1, 2.5], [1.0, 2.5], [True] * 2),
        (pa.array([Decimal("1.25")]), [1.25], [True]),
        ([True, False], [0.0, 0.0], [False, False]),
        (["", "3"], [0.0, 3.0], [False, True]),
    ],
)
def test_numbers_are_read_as_the_api_would_take_them(column: Any, values: list[float], sound: list[bool]) -> None:
    read = numbers(array(column))
    assert (read.values.tolist(), read.sound.tolist()) == (values, sound)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31T12:00:00.123456+02:00", "2026-01-31T10:00:00.123456Z"),
        ("2026-01-31 12:00:00", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31 12:00:00 UTC", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31T12:00+0200", "2026-01-31T10:00:00.000000Z"),
        ("2026-01-31", "2026-01-31T00:00:00.000000Z"),
        ("1700000000", "2023-11-14T22:13:20.000000Z"),
        ("1700000000.25", "2023-11-14T22:13:20.250000Z"),
        ("2026-02-30", None),
        ("31/01/2026", None),
        ("soon", None),
        ("9" * 40, None),
        ("1e40", None),
        ("-90000000000", None),
        ("-1", "1969-12-31T23:59:59.000000Z"),
    ],
)
def test_times_are_read_and_what_is_none_is_not_guessed(text: str, expected: str | None) -> None:
    read = times_us(array([text, "2026-01-01"]), "s")
    assert (format_time(int(read.values[0])) if read.sound[0] else None) == expected


@given(st.integers(0, 4_000_000_000))
def test_a_moment_is_the_same_in_every_unit_and_type(seconds: int) -> None:
    us = seconds * 1_000_000
    columns: list[tuple[Any, Any]] = [
        ([seconds], "s"), ([seconds * 1000], "ms"), ([us], "us"), ([str(seconds)], "s"), ([str(us)], "us"),
        ([float(seconds)], "s"), (pa.array([us], pa.timestamp("us")), "s"), ([format_time(us)], "s"),
        (pa.array([seconds * 1000], pa.timestamp("ms", "Europe/Paris")), "s"),
    ]  # fmt: skip
    for column, unit in columns:
        read = times_us(array(column), unit)
        assert (read.values.tolist(), read.sound.tolist()) == ([us], [True])


@pytest.mark.parametrize(
    ("value", "unit"), [(1_700_000_000, "s"), (1_700_000_000_000, "ms"), (1_700_000_000_000_000, "us"), ("now", "s")]
)
def test_the_unit_is_told_by_the_size_of_the_numbers(value: Any, unit: str) -> None:
    assert decide_unit(array([value, value])) == unit
    assert decide_unit(array([str(value)])) == unit
