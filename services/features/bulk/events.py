"""Rows of a file as columns of events, checked as a whole.

The checks here may refuse what is sound, never the reverse: a row that they do not let pass goes through the API's
own EventValidator, which takes it or says why not. So there is one truth about an event, and a clean file never pays
for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.bulk.event_cells import Cells, EventColumns
from services.features.bulk.plan import Plan
from services.features.bulk.rejects import Reject
from services.features.bulk.sources import Chunk
from services.features.bulk.values import Bools, Numbers, Texts, TimeUnit
from services.features.ingest.rows import EventRow
from services.features.ingest.validation import MAX_POSITION, EventBody, EventValidator
from shared.actions import ActionTable
from shared.identity import ID_MAX_LENGTH, ID_PATTERN

# Fixed, so that mapping one more column later does not make other events of the same rows.
_IDENTITY = ("user_id", "visitor_id", "item_id", "event_type")
_SEPARATOR = "\x1f"
_API_ADVICE = "; send `sent_at` beside `events` to correct the client's clock"
# RE2 compiles {0,254} of two classes into thousands of states; the same rule as a class, a length and two ends.
_INK = ID_PATTERN[2 : ID_PATTERN.index("]")]
_CLASS = f"^[{_INK} ]*$"
_UNTRIMMED = "^ | $"


class EventReader:
    """`types`: what the file calls an event type -> what `silkrec.yaml` calls it. Immutable."""

    def __init__(
        self, plan: Plan, actions: ActionTable, validator: EventValidator, *, future_tolerance_s: float,
        unit: TimeUnit, types: Mapping[str, str], id_prefix: str, empty_is_missing: bool,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._actions = actions
        self._validator = validator
        self._tolerance_us = int(future_tolerance_s * 1_000_000)
        self._unit = unit
        self._types = types
        self._id_prefix = id_prefix
        self._empty_is_missing = empty_is_missing

    def read(self, chunk: Chunk, received_at_us: int) -> tuple[EventColumns, list[Reject]]:
        cells = Cells(self._plan, chunk, self._unit, self._empty_is_missing, self._types)
        if "event_id" not in cells.texts:
            cells.texts["event_id"] = _all_present(self._event_ids(cells))
        action, passes = self._check(cells, received_at_us)
        columns = cells.columns(action)
        if passes.all():
            return columns, []
        admitted, rejects = self._one_by_one(cells, np.flatnonzero(~passes), received_at_us)
        return _merged(columns.taken(passes), admitted), rejects

    def _check(self, cells: Cells, received_at_us: int) -> tuple[npt.NDArray[np.int64], Bools]:
        passes = np.ones(len(cells.rows), bool)
        for name, text in cells.texts.items():
            if name != "event_type":
                passes &= ~text.present | (text.sound & ids(text.values))
        for number in (cells.value, cells.position):
            if number is not None:
                passes &= ~number.present | number.sound
        if cells.position is not None:
            place = cells.position.values
            passes &= (place >= 0) & (place <= MAX_POSITION) & (np.floor(place) == place)
        passes &= cells.texts["event_id"].present & (cells.has("user_id") | cells.has("visitor_id"))
        time = cells.time
        passes &= time.sound & (time.values >= 0) & (time.values <= received_at_us + self._tolerance_us)
        action = resolve_actions(self._actions, cells.texts["event_type"].values, cells.value)
        return action, passes & (action >= 0) & ~cells.needs_own_check()

    def _event_ids(self, cells: Cells) -> list[str]:
        """From the row's number and content, so that importing a file again, moved, renamed or grown at its end,
        changes nothing. The number comes first: the index of event_id is then written in its order."""
        nothing = pa.nulls(len(cells.rows), pa.string())
        parts = [cells.texts[name].values if name in cells.texts else nothing for name in _IDENTITY]
        parts.append(pa.array(cells.time.values).cast(pa.string()))
        if cells.value is not None:
            # The bits, because texts of numbers may differ between versions of a library.
            bits = (cells.value.values + 0.0).view(np.int64)
            parts.append(pa.array(bits, mask=~cells.value.present).cast(pa.string()))
        joined = pc.binary_join_element_wise(*parts, _SEPARATOR, null_handling="replace", null_replacement="")
        return [
            f"{self._id_prefix}{row:010d}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
            for row, text in zip(cells.rows.tolist(), joined.to_pylist(), strict=True)
        ]

    def _one_by_one(
        self, cells: Cells, places: npt.NDArray[np.int64], received_at_us: int
    ) -> tuple[list[tuple[int, EventRow]], list[Reject]]:
        admitted: list[tuple[int, EventRow]] = []
        rejects: list[Reject] = []
        for place in places.tolist():
            row = int(cells.rows[place])
            event, unread = cells.event(place)
            rows, refused = self._validator.rows(EventBody([event], 0, None, None), received_at_us)
            if rows and not unread:
                admitted.append((row, rows[0][1]))
                continue
            code, message = (refused[0].code, refused[0].message) if refused else ("invalid", "")
            # Of a cell that could not be read we know more than the API, which knows JSON only.
            message = next((own for name, own in unread.items() if not refused or message.startswith(name)), message)
            rejects.append(Reject(row, code, message.replace(_API_ADVICE, ""), cells.raw(place)))
        return admitted, rejects


def ids(values: pa.Array) -> Bools:
    """Which strings are valid ids, each distinct one looked at once."""
    encoded = values.dictionary_encode()
    known = encoded.dictionary
    length = pc.binary_length(known)
    good = pc.and_(pc.match_substring_regex(known, _CLASS), pc.invert(pc.match_substring_regex(known, _UNTRIMMED)))
    good = pc.and_(good, pc.and_(pc.greater(length, 0), pc.less_equal(length, ID_MAX_LENGTH)))
    verdicts = np.asarray(pc.fill_null(good, False), bool)
    places = np.asarray(pc.fill_null(encoded.indices, -1), np.int64)
    return np.append(verdicts, False)[places]


def resolve_actions(actions: ActionTable, types: pa.Array, value: Numbers | None) -> npt.NDArray[np.int64]:
    """ActionTable.resolve of every row; -1 where that is None."""
    encoded = types.dictionary_encode()
    places = np.asarray(pc.fill_null(encoded.indices, -1), np.int64)
    found = np.full(len(types), -1, np.int64)
    for place, name in enumerate(encoded.dictionary.to_pylist()):
        group = [action for action in actions if action.event_type == name]
        mine = places == place
        bounds = [action.below for action in group if action.below is not None]
        codes = np.array([action.code for action in group], np.int64)
        if group and not bounds:
            found[mine] = codes[0]
        elif group and value is not None:
            mine &= value.sound
            found[mine] = codes[np.searchsorted(np.array(bounds), value.values[mine], side="right")]
    return found


def _merged(columns: EventColumns, admitted: list[tuple[int, EventRow]]) -> EventColumns:
    if not admitted:
        return columns
    rows = [row for row, _ in admitted]
    order = np.argsort(np.array([*columns.row, *rows], np.int64), kind="stable")
    events = [event for _, event in admitted]

    def joined(name: str) -> Any:
        first: Any = columns.row if name == "row" else getattr(columns, name)
        more: list[Any] = rows if name == "row" else [getattr(event, name) for event in events]
        if isinstance(first, np.ndarray):
            return np.concatenate((first, np.array(more, np.int64)))[order]
        if first is None and all(value is None for value in more):
            return None
        whole = [*(first if first is not None else [None] * len(columns)), *more]
        return [whole[place] for place in order.tolist()]

    return EventColumns(**{each.name: joined(each.name) for each in fields(EventColumns)})


def _all_present(values: list[str]) -> Texts:
    whole = np.ones(len(values), bool)
    return Texts(pa.array(values, pa.string()), whole, whole)
