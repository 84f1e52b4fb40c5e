"""Rows of a file as columns of events, checked as a whole.

The checks here may refuse what is sound, never the reverse: a row that they do not let pass goes through the API's
own EventValidator, which takes it or says why not. So there is one truth about an event, and a clean file never pays
for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from services.features.bulk.plan import Plan
from services.features.bulk.rejects import Reject
from services.features.bulk.sources import Chunk
from services.features.bulk.values import Bools, Numbers, Texts, TimeUnit, as_array, numbers, texts, times_us
from services.features.ingest.rows import EventRow
from services.features.ingest.validation import MAX_POSITION, EventBody, EventValidator
from services.features.items.times import format_time
from shared.actions import ActionTable
from shared.identity import ID_MAX_LENGTH, ID_PATTERN

_TEXT_FIELDS = (
    "event_id", "event_type", "user_id", "visitor_id", "item_id", "session_id", "recommendation_id",
)  # fmt: skip
# Fixed, so that mapping one more column later does not make other events of the same rows.
_IDENTITY = ("user_id", "visitor_id", "item_id", "event_type")
_OWN_CHECK = ("properties", "impression")
_SEPARATOR = "\x1f"
_NO_TIME = "is no time: neither RFC 3339 nor seconds, milliseconds or microseconds since 1970 (--time-unit)"
_API_ADVICE = "; send `sent_at` beside `events` to correct the client's clock"
# RE2 compiles {0,254} of two classes into thousands of states; the same rule as a class, a length and two ends.
_INK = ID_PATTERN[2 : ID_PATTERN.index("]")]
_CLASS = f"^[{_INK} ]*$"
_UNTRIMMED = "^ | $"


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Valid events, in the order of the file; every field [n], times in microseconds since 1970 UTC. A field of None
    is empty in every row."""

    row: Sequence[int]
    event_id: Sequence[str]
    user_key: Sequence[str]
    item_id: Sequence[str | None]
    action: npt.NDArray[np.int64]
    event_value: Sequence[float | None]
    occurred_at_us: npt.NDArray[np.int64]
    session_id: Sequence[str | None] | None = None
    recommendation_id: Sequence[str | None] | None = None
    position: Sequence[int | None] | None = None
    impression: Sequence[Sequence[str] | None] | None = None
    properties: Sequence[Mapping[str, Any] | None] | None = None

    def __len__(self) -> int:
        return len(self.event_id)

    def taken(self, keep: Bools) -> EventColumns:
        places = np.flatnonzero(keep)

        def chosen(column: Any) -> Any:
            if column is None or isinstance(column, np.ndarray):
                return None if column is None else column[places]
            return [column[place] for place in places.tolist()]

        return EventColumns(**{each.name: chosen(getattr(self, each.name)) for each in fields(self)})


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
        cells = _Cells(self._plan, chunk, self._unit, self._empty_is_missing, self._types)
        if "event_id" not in cells.texts:
            cells.texts["event_id"] = _all_present(self._event_ids(cells))
        action, passes = self._check(cells, received_at_us)
        columns = cells.columns(action)
        if passes.all():
            return columns, []
        admitted, rejects = self._one_by_one(cells, np.flatnonzero(~passes), received_at_us)
        return _merged(columns.taken(passes), admitted), rejects

    def _check(self, cells: _Cells, received_at_us: int) -> tuple[npt.NDArray[np.int64], Bools]:
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

    def _event_ids(self, cells: _Cells) -> list[str]:
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
        self, cells: _Cells, places: npt.NDArray[np.int64], received_at_us: int
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


class _Cells:
    """A chunk's cells by field."""

    def __init__(
        self, plan: Plan, chunk: Chunk, unit: TimeUnit, empty_is_missing: bool, types: Mapping[str, str]
    ) -> None:
        self.rows = chunk.rows
        self._plan, self._chunk = plan, chunk
        self._arrays: dict[str, pa.Array] = {}
        for name, column in plan.columns.items():
            if name not in _OWN_CHECK and not name.startswith("properties."):
                self._arrays[name] = as_array(chunk.columns[column], empty_is_missing=empty_is_missing)
        for name, text in plan.constants.items():
            if not name.startswith("properties."):
                self._arrays[name] = pa.repeat(pa.scalar(text), len(chunk.rows))
        self.texts = {name: texts(self._arrays[name]) for name in _TEXT_FIELDS if name in self._arrays}
        if types:
            self.texts["event_type"] = _renamed(self.texts["event_type"], types)
        self.time = times_us(self._arrays["occurred_at"], unit)
        self.value = self._number("event_value")
        self.position = self._number("position")
        self._empty_is_missing = empty_is_missing

    def _number(self, name: str) -> Numbers | None:
        return numbers(self._arrays[name]) if name in self._arrays else None

    def has(self, name: str) -> Bools:
        return self.texts[name].present if name in self.texts else np.zeros(len(self.rows), bool)

    def needs_own_check(self) -> Bools:
        """Rows with properties or impressions: lists and objects, looked at one by one."""
        needs = np.zeros(len(self.rows), bool)
        for name, column in self._plan.columns.items():
            if name in _OWN_CHECK or name.startswith("properties."):
                array = self._chunk.columns[column]
                cells = array.to_pylist() if isinstance(array, pa.Array) else array
                needs |= np.fromiter((not self._missing(cell) for cell in cells), bool, len(cells))
        if any(name.startswith("properties.") for name in self._plan.constants):
            needs[:] = True
        return needs

    def _missing(self, cell: Any) -> bool:
        return cell is None or (self._empty_is_missing and cell == "")

    def columns(self, action: npt.NDArray[np.int64]) -> EventColumns:
        users, visitors = self._prefixed("user_id", "u:"), self._prefixed("visitor_id", "v:")
        item = self.texts.get("item_id")
        count = len(self.rows)
        return EventColumns(
            row=self.rows.tolist(),
            event_id=self.texts["event_id"].values.to_pylist(),
            user_key=pc.coalesce(users, visitors).to_pylist(),
            item_id=[None] * count if item is None else item.values.to_pylist(),
            action=action,
            event_value=[None] * count if self.value is None else _optional(self.value),
            occurred_at_us=self.time.values,
            session_id=self._text_list("session_id"),
            recommendation_id=self._text_list("recommendation_id"),
            position=None if self.position is None else _optional(self.position, int),
        )

    def _prefixed(self, name: str, prefix: str) -> pa.Array:
        if name not in self.texts:
            return pa.nulls(len(self.rows), pa.string())
        return pc.binary_join_element_wise(prefix, self.texts[name].values, "")

    def _text_list(self, name: str) -> list[str | None] | None:
        found = self.texts.get(name)
        return None if found is None else found.values.to_pylist()

    def event(self, place: int) -> tuple[dict[str, Any], dict[str, str]]:
        """One row as POST /v1/events would get it, and what to say of the cells that could not be read: those stand in
        it as they are, and cannot pass."""
        event: dict[str, Any] = {}
        unread: dict[str, str] = {}

        def unreadable(name: str, why: str) -> None:
            event[name] = self._arrays[name][place].as_py()
            unread[name] = f"{name} {event[name]!r:.80} {why}"

        for name, text in self.texts.items():
            if text.present[place] and text.sound[place]:
                event[name] = text.values[place].as_py()
            elif text.present[place]:
                unreadable(name, "must be a text or a whole number")
        for name, number in (("event_value", self.value), ("position", self.position)):
            if number is not None and number.present[place]:
                value = float(number.values[place])
                event[name] = int(value) if name == "position" and value.is_integer() else value
                if not number.sound[place]:
                    unreadable(name, "is no number")
        if self.time.present[place]:
            event["occurred_at"] = format_time(int(self.time.values[place]))
            if not self.time.sound[place]:
                unreadable("occurred_at", _NO_TIME)
        self._add_objects(event, place)
        return event, unread

    def _add_objects(self, event: dict[str, Any], place: int) -> None:
        single = {}
        for name, column in self._plan.columns.items():
            cell = _python(self._chunk.columns[column], place)
            if name.startswith("properties.") and not self._missing(cell):
                single[name.partition(".")[2]] = _plain(cell)
            elif name in _OWN_CHECK and not self._missing(cell):
                event[name] = _parsed(cell)
        single |= {
            name.partition(".")[2]: text
            for name, text in self._plan.constants.items()
            if name.startswith("properties.")
        }
        whole = event.get("properties") or {}
        if single and isinstance(whole, dict):  # the validator has its say on anything else
            event["properties"] = {**whole, **single}

    def raw(self, place: int) -> dict[str, Any]:
        return {column: _python(self._chunk.columns[column], place) for column in self._plan.columns.values()}


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


def _renamed(found: Texts, types: Mapping[str, str]) -> Texts:
    encoded = found.values.dictionary_encode()
    names = pa.array([types.get(name, name) for name in encoded.dictionary.to_pylist()], pa.string())
    return Texts(names.take(encoded.indices), found.present, found.sound)


def _all_present(values: list[str]) -> Texts:
    whole = np.ones(len(values), bool)
    return Texts(pa.array(values, pa.string()), whole, whole)


def _optional(number: Numbers, kind: type = float) -> list[Any]:
    if number.present.all():
        return list(number.values.astype(kind).tolist())
    known = zip(number.values.tolist(), number.present.tolist(), strict=True)
    return [kind(value) if present else None for value, present in known]


def _python(column: Any, place: int) -> Any:
    return column[place].as_py() if isinstance(column, pa.Array) else column[place]


def _plain(cell: Any) -> Any:
    """A value that JSON can hold."""
    return orjson.loads(orjson.dumps(cell, default=str))


def _parsed(cell: Any) -> Any:
    """A CSV cell holds JSON as its text; what is none stays as it is, and the validator says what it should be."""
    if not isinstance(cell, str):
        return _plain(cell)
    try:
        return orjson.loads(cell)
    except orjson.JSONDecodeError:
        return cell


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
