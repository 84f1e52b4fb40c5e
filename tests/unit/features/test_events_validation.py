from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.features.ingest.rows import DAY_US, EventRow
from services.features.ingest.validation import EventValidator, Rejected, read_body
from shared.actions import ActionTable
from shared.errors import ValidationFailed
from shared.schema import Schema

ACTIONS = ActionTable.from_schema(Schema())
VALIDATOR = EventValidator(ACTIONS, future_tolerance_s=300)
NOW = datetime(2026, 3, 1, 0, 0, 30, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
GOOD: dict[str, Any] = {
    "event_id": "e1",
    "event_type": "click",
    "user_id": "ann",
    "item_id": "i 1",
    "occurred_at": "2026-02-28T23:00:00+01:00",
}


def rows(*events: Any, **body: Any) -> tuple[list[tuple[int, EventRow]], list[Rejected]]:
    return VALIDATOR.rows(read_body({"events": list(events), **body}, NOW_US), NOW_US)


def test_a_good_event_becomes_a_row() -> None:
    (found,), rejected = rows({**GOOD, "position": 0, "impression": ["a", "b"], "properties": {"x": [1]}})
    assert rejected == []
    index, row = found
    assert (index, row.user_key, row.item_id, row.action) == (0, "u:ann", "i 1", ACTIONS.by_name["click"].code)
    assert row.occurred_at_us == int(datetime(2026, 2, 28, 22, tzinfo=UTC).timestamp()) * 1_000_000
    assert (row.position, row.impression, row.properties) == (0, ["a", "b"], {"x": [1]})


def test_a_user_id_wins_over_a_visitor_id() -> None:
    (by_both,), _ = rows({**GOOD, "visitor_id": "cookie"})
    assert by_both[1].user_key == "u:ann"
    (by_visitor,), _ = rows({**GOOD, "user_id": None, "visitor_id": "cookie"})
    assert by_visitor[1].user_key == "v:cookie"


def test_a_rating_becomes_the_action_of_its_band() -> None:
    found, _ = rows(*({**GOOD, "event_type": "rating", "event_value": stars} for stars in (1, 3.5, 5)))
    assert [ACTIONS.by_code[row.action].name for _, row in found] == ["rating_low", "rating_mid", "rating_high"]


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"event_id": None}, "missing", "event_id"),
        ({"event_id": 7}, "invalid", "event_id"),
        ({"event_id": "a/b"}, "invalid", "event_id"),
        ({"event_id": " a"}, "invalid", "event_id"),
        ({"event_id": "x" * 257}, "invalid", "event_id"),
        ({"user_id": None}, "missing", "user_id or visitor_id"),
        ({"user_id": ""}, "invalid", "user_id"),
        ({"item_id": "ü"}, "invalid", "item_id"),
        ({"event_type": "purr"}, "unknown_event_type", "purr"),
        ({"event_type": ["click"]}, "unknown_event_type", "click"),
        ({"event_type": "rating"}, "missing", "event_value"),
        ({"event_value": "5"}, "invalid", "event_value"),
        ({"event_value": True}, "invalid", "event_value"),
        ({"event_value": float("nan")}, "invalid", "event_value"),
        ({"event_value": float("inf")}, "invalid", "event_value"),
        ({"event_value": 10**400}, "invalid", "event_value"),
        ({"occurred_at": "2026-02-28"}, "invalid", "RFC 3339"),
        ({"occurred_at": "2026-02-28T10:00:00"}, "invalid", "RFC 3339"),
        ({"occurred_at": "2026-02-30T10:00:00Z"}, "invalid", "RFC 3339"),
        ({"occurred_at": 1_700_000_000}, "invalid", "RFC 3339"),
        ({"occurred_at": "1969-12-31T23:59:59Z"}, "invalid", "1970"),
        ({"occurred_at": (NOW + timedelta(seconds=301)).isoformat()}, "in_the_future", "sent_at"),
        ({"position": -1}, "invalid", "position"),
        ({"position": 1.5}, "invalid", "position"),
        ({"impression": "i1"}, "invalid", "impression"),
        ({"impression": ["i1", 2]}, "invalid", "impression"),
        ({"impression": ["i"] * 501}, "invalid", "impression"),
        ({"properties": []}, "invalid", "properties"),
        ({"properties": {"x": "y" * 9000}}, "too_large", "properties"),
        ({"price": 3}, "extra_forbidden", "price"),
    ],
)
def test_an_event_that_does_not_fit_is_rejected_with_a_code_and_the_field(
    changes: dict[str, Any], code: str, names: str
) -> None:
    found, (rejected,) = rows(GOOD, {**GOOD, **changes}, GOOD)
    assert [index for index, _ in found] == [0, 2]
    assert (rejected.index, rejected.code) == (1, code)
    assert names in rejected.message


def test_what_is_no_object_is_rejected_without_an_event_id() -> None:
    _, rejected = rows("click", None, [GOOD])
    assert [(row.index, row.event_id, row.code) for row in rejected] == [(n, None, "invalid") for n in range(3)]


def test_sent_at_corrects_a_wrong_clock_and_the_day_of_the_event_id_stays_the_clients() -> None:
    ahead = NOW + timedelta(days=3)
    event = {**GOOD, "occurred_at": (ahead - timedelta(seconds=10)).isoformat()}
    _, (refused,) = rows(event)
    assert refused.code == "in_the_future"
    (found,), _ = rows(event, sent_at=ahead.isoformat())
    assert found[1].occurred_at_us == NOW_US - 10_000_000
    assert found[1].identity == ("e1", NOW_US // DAY_US + 3)
    assert found[1].day == NOW_US // DAY_US


def test_a_clock_in_1970_is_corrected_too() -> None:
    (found,), _ = rows({**GOOD, "occurred_at": "1970-01-01T00:00:05Z"}, sent_at="1970-01-01T00:00:06Z")
    assert found[1].occurred_at_us == NOW_US - 1_000_000


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (None, ""),
        ({"events": {}}, "/events"),
        ({"events": [GOOD] * 501}, "/events"),
        ({"events": [GOOD], "a/b": 1}, "/a~1b"),
        ({"events": [GOOD], "user_token": 1}, "/user_token"),
    ],
)
def test_a_fault_of_the_body_points_at_its_place(body: Any, pointer: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        read_body(body, NOW_US)
    assert [fault.pointer for fault in caught.value.errors] == [pointer]


@pytest.mark.bench
def test_500_events_are_checked_in_5_ms() -> None:
    events = [{**GOOD, "event_id": f"e{n}", "session_id": "s", "position": n} for n in range(500)]
    took = []
    for _ in range(20):
        began = time.perf_counter()
        rows(*events)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.005
