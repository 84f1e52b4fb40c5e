"""Columns by slot. A slot is written once, before anyone can see it; slot 0 is the row of missing values.

A value that does not fit the declared type (the declaration changed, the stored item did not) is missing, no error.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from shared.contracts.history import Int32, Int64
from shared.schema import FieldType

MISSING_TIME = int(np.iinfo(np.int64).min)
MISSING_CODE = -1
ABSENT_CODE = -2
"""The code of a string that no item has: equal to nothing stored, not even to a missing value."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def parse_time(text: str) -> int | None:
    """RFC 3339 to microseconds since 1970; without an offset it is UTC. None when it is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND


def format_time(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


class Dictionary:
    """Strings to int32 codes; append-only, so that a reader's codes stay valid while a writer adds."""

    __slots__ = ("_codes", "strings")

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self.strings: list[str] = []

    def code(self, text: str) -> int:
        return self._codes.get(text, ABSENT_CODE)

    def add(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            code = len(self.strings)
            self.strings.append(text)
            self._codes[text] = code
        return code


class Column(ABC):
    """One field of every slot. `grown` and `packed` make new columns; `put` fills slots that nobody sees yet."""

    kind: FieldType

    @abstractmethod
    def grown(self, capacity: int) -> Self: ...

    @abstractmethod
    def packed(self, slots: Int64, capacity: int) -> Self:
        """The column with `slots` moved to 0, 1, 2 …"""

    @abstractmethod
    def put(self, first: int, values: Sequence[Any]) -> Self:
        """Writes `values` at slots first, first+1 …; the result may be another object when a pool had to grow."""

    @abstractmethod
    def get(self, slot: int) -> Any:
        """The value as the API shows it; None when missing."""


class ArrayColumn(Column):
    """`values [capacity]`: number float64 (NaN), timestamp int64 µs (MISSING_TIME), boolean int8 (-1)."""

    __slots__ = ("kind", "values")

    def __init__(self, kind: FieldType, values: npt.NDArray[Any]) -> None:
        self.kind = kind
        self.values = values

    @classmethod
    def empty(cls, kind: FieldType, capacity: int) -> ArrayColumn:
        dtype, missing = _LAYOUT[kind]
        return cls(kind, np.full(capacity, missing, dtype))

    def grown(self, capacity: int) -> Self:
        return type(self)(self.kind, _grow(self.values, capacity, _LAYOUT[self.kind][1]))

    def packed(self, slots: Int64, capacity: int) -> Self:
        return type(self)(self.kind, _grow(self.values[slots], capacity, _LAYOUT[self.kind][1]))

    def put(self, first: int, values: Sequence[Any]) -> Self:
        self.values[first : first + len(values)] = [_ENCODE[self.kind](value) for value in values]
        return self

    def get(self, slot: int) -> Any:
        value = self.values[slot].item()
        if self.kind == "number":
            return None if math.isnan(value) else value
        if self.kind == "boolean":
            return None if value < 0 else bool(value)
        return None if value == MISSING_TIME else format_time(value)


class StringColumn(Column):
    """`values [capacity]` int32 codes of `dictionary`."""

    __slots__ = ("dictionary", "values")
    kind: FieldType = "string"

    def __init__(self, values: Int32, dictionary: Dictionary) -> None:
        self.values = values
        self.dictionary = dictionary

    def grown(self, capacity: int) -> Self:
        return type(self)(_grow(self.values, capacity, MISSING_CODE), self.dictionary)

    def packed(self, slots: Int64, capacity: int) -> Self:
        codes, dictionary = _recoded(self.values[slots], self.dictionary)
        return type(self)(_grow(codes, capacity, MISSING_CODE), dictionary)

    def put(self, first: int, values: Sequence[Any]) -> Self:
        add = self.dictionary.add
        self.values[first : first + len(values)] = [add(v) if isinstance(v, str) else MISSING_CODE for v in values]
        return self

    def get(self, slot: int) -> Any:
        code = int(self.values[slot])
        return None if code < 0 else self.dictionary.strings[code]


class StringsColumn(Column):
    """String lists: `codes[start[slot] : start[slot] + length[slot]]`; an empty list counts as missing."""

    __slots__ = ("codes", "dictionary", "length", "start", "used")
    kind: FieldType = "strings"

    def __init__(self, start: Int64, length: Int32, codes: Int32, used: int, dictionary: Dictionary) -> None:
        self.start = start
        self.length = length
        self.codes = codes
        self.used = used
        self.dictionary = dictionary

    @classmethod
    def empty(cls, capacity: int) -> StringsColumn:
        codes = np.full(capacity, MISSING_CODE, np.int32)
        return cls(np.zeros(capacity, np.int64), np.zeros(capacity, np.int32), codes, 0, Dictionary())

    def grown(self, capacity: int) -> Self:
        start, length = _grow(self.start, capacity, 0), _grow(self.length, capacity, 0)
        return type(self)(start, length, self.codes, self.used, self.dictionary)

    def packed(self, slots: Int64, capacity: int) -> Self:
        flat, _ = self.flat(slots)
        codes, dictionary = _recoded(flat, self.dictionary)
        length = self.length[slots]
        start = np.cumsum(length, dtype=np.int64) - length
        return type(self)(_grow(start, capacity, 0), _grow(length, capacity, 0), codes, len(codes), dictionary)

    def put(self, first: int, values: Sequence[Any]) -> Self:
        add = self.dictionary.add
        lists = [_string_list(value) for value in values]
        length = np.fromiter(map(len, lists), np.int32, len(lists))
        flat = [add(text) for texts in lists for text in texts]
        column, end = self, self.used + len(flat)
        if end > len(self.codes):
            codes = _grow(self.codes, max(end, 2 * len(self.codes)), MISSING_CODE)
            column = type(self)(self.start, self.length, codes, self.used, self.dictionary)
        column.codes[self.used : end] = flat
        column.start[first : first + len(lists)] = self.used + np.cumsum(length, dtype=np.int64) - length
        column.length[first : first + len(lists)] = length
        column.used = end
        return column

    def flat(self, slots: Int64) -> tuple[Int32, Int64]:
        """`(codes [T], owner [T])`: every code of `slots [N]` in order, and which of the N it belongs to."""
        length = self.length[slots]
        owner = np.repeat(np.arange(len(slots)), length)
        first = self.start[slots] - (np.cumsum(length, dtype=np.int64) - length)
        return self.codes[np.arange(len(owner)) + first[owner]], owner

    def get(self, slot: int) -> Any:
        start = int(self.start[slot])
        codes = self.codes[start : start + int(self.length[slot])]
        return [self.dictionary.strings[code] for code in codes.tolist()]


class TextColumn(Column):
    """Strings that are nearly all different (titles): a plain list, because a dictionary would only add 100 B each."""

    __slots__ = ("values",)
    kind: FieldType = "string"

    def __init__(self, values: list[str | None]) -> None:
        self.values = values

    def grown(self, capacity: int) -> Self:  # noqa: ARG002  a list grows by itself
        return self

    def packed(self, slots: Int64, capacity: int) -> Self:  # noqa: ARG002
        return type(self)([self.values[slot] for slot in slots.tolist()])

    def put(self, first: int, values: Sequence[Any]) -> Self:
        self.values[first:] = [value if isinstance(value, str) else None for value in values]
        return self

    def get(self, slot: int) -> Any:
        return self.values[slot]


def make_column(kind: FieldType, capacity: int) -> Column:
    if kind == "string":
        return StringColumn(np.full(capacity, MISSING_CODE, np.int32), Dictionary())
    return StringsColumn.empty(capacity) if kind == "strings" else ArrayColumn.empty(kind, capacity)


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    return math.nan


def _time(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= _LAST_TIME else MISSING_TIME
    parsed = parse_time(value) if isinstance(value, str) else None
    return MISSING_TIME if parsed is None else parsed


def _boolean(value: Any) -> int:
    return int(value) if isinstance(value, bool) else -1


def _string_list(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, (list, tuple)) else []


_LARGEST = 1.7976931348623157e308
_LAST_TIME = 253_402_300_799_999_999  # the end of year 9999, the last that RFC 3339 can write
_LAYOUT: dict[FieldType, tuple[type[np.generic], Any]] = {
    "number": (np.float64, math.nan),
    "timestamp": (np.int64, MISSING_TIME),
    "boolean": (np.int8, -1),
}
_ENCODE: dict[FieldType, Any] = {"number": _number, "timestamp": _time, "boolean": _boolean}


def _grow(values: npt.NDArray[Any], capacity: int, fill: Any) -> npt.NDArray[Any]:
    bigger = np.full(capacity, fill, values.dtype)
    bigger[: len(values)] = values
    return bigger


def _recoded(codes: Int32, dictionary: Dictionary) -> tuple[Int32, Dictionary]:
    """Codes in a new dictionary that holds only the strings still in use."""
    used = np.unique(codes[codes >= 0])
    renamed = Dictionary()
    for code in used.tolist():
        renamed.add(dictionary.strings[code])
    fresh = np.searchsorted(used, codes).astype(np.int32)
    fresh[codes < 0] = MISSING_CODE
    return fresh, renamed
