"""Columns of events against the API's own check, row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.features.bulk.event_cells import EventColumns
from services.features.bulk.events import EventReader
from services.features.bulk.plan import EVENT_FIELDS, Plan
from services.features.bulk.sources import Chunk
from services.features.ingest.rows import EventRow
from services.features.ingest.validation import EventBody, EventValidator
from shared.actions import ActionTable
from shared.schema import Schema

ACTIONS = ActionTable.from_schema(Schema())
NOW_US = 1_800_000_000_000_000
TOLERANCE_S = 300.0
VALIDATOR = EventValidator(ACTIONS, future_tolerance_s=TOLERANCE_S)

texts = st.sampled_from(["a", "b", "", "a b", " a", "a ", "a/b", "é", "x" * 256, "x" * 257, "it's", '"', "\\"])
moments = st.datetimes(datetime(1969, 6, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
times = moments.map(lambda moment: moment.isoformat().replace("+00:00", "Z")) | st.just("no time")
rows = st.fixed_dictionaries(
    {
        "event_id": st.none() | texts,
        "event_type": st.none() | st.sampled_from([*ACTIONS.event_types, "unknown", ""]),
        "occurred_at": st.none() | times,
    },
    optional={
        "user_id": st.none() | texts,
        "visitor_id": st.none() | texts,
        "item_id": st.none() | texts,
        "session_id": st.none() | texts,
        "recommendation_id": st.none() | texts,
        "event_value": st.none() | st.floats(-10, 10) | st.integers(-10, 10),
        "position": st.none() | st.integers(-2, 1_000_002),
        "impression": st.none() | st.lists(texts, max_size=3),
        "properties": st.none()
        | st.dictionaries(st.text(max_size=3), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3), max_size=2),
    },
)


def columns_of(events: list[dict[str, Any]]) -> tuple[EventColumns, dict[int, str]]:
    plan = Plan("events", {name: name for name in EVENT_FIELDS}, {}, ())
    reader = EventReader(
        plan, ACTIONS, VALIDATOR, future_tolerance_s=TOLERANCE_S, unit="s", types={}, id_prefix="i-",
        empty_is_missing=False,
    )  # fmt: skip
    chunk = Chunk(
        np.arange(1, len(events) + 1, dtype=np.int64),
        {name: [event.get(name) for event in events] for name in EVENT_FIELDS},
        (),
        len(events),
    )
    columns, rejects = reader.read(chunk, NOW_US)
    return columns, {reject.row: reject.code for reject in rejects}


def as_rows(columns: EventColumns) -> dict[int, EventRow]:
    def cell(name: str, place: int) -> Any:
        column = getattr(columns, name)
        return None if column is None else column[place]

    names = ("event_id", "user_key", "item_id", "event_value", "session_id", "recommendation_id", "position")
    return {
        columns.row[place]: EventRow(
            action=int(columns.action[place]),
            occurred_at_us=int(columns.occurred_at_us[place]),
            received_at_us=NOW_US,
            impression=cell("impression", place),
            properties=cell("properties", place),
            **{name: cell(name, place) for name in names},
        )
        for place in range(len(columns))
    }


@settings(deadline=None, max_examples=300)
@given(st.lists(rows, min_size=1, max_size=12))
def test_a_file_is_judged_row_by_row_as_the_api_would_judge_it(events: list[dict[str, Any]]) -> None:
    taken, refused = VALIDATOR.rows(EventBody(events, 0, None, None), NOW_US)

    columns, codes = columns_of(events)

    assert as_rows(columns) == {place + 1: row for place, row in taken}
    assert codes == {each.index + 1: each.code for each in refused}
