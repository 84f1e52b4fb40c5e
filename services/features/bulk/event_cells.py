"""A chunk's cells as fields of events: what could be read, and what stood there where it could not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from services.features.bulk.plan import Plan
from services.features.bulk.sources import Chunk
from services.features.bulk.values import Bools, Numbers, Texts, TimeUnit, as_array, numbers, texts, times_us
from services.features.items.times import format_time

_TEXT_FIELDS = (
    "event_id", "event_type", "user_id", "visitor_id", "item_id", "session_id", "recommendation_id",
)  # fmt: skip
_OWN_CHECK = ("properties", "impression")
_NO_TIME = "is no time: neither RFC 3339 nor seconds, milliseconds or microseconds since 1970 (--time-unit)"


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


class Cells:
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


def _renamed(found: Texts, types: Mapping[str, str]) -> Texts:
    encoded = found.values.dictionary_encode()
    names = pa.array([types.get(name, name) for name in encoded.dictionary.to_pylist()], pa.string())
    return Texts(names.take(encoded.indices), found.present, found.sound)


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
