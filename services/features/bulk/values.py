"""Columns of any file as ids, numbers and times: numpy and pyarrow instead of a loop over rows.

Every function takes a column as a source gives it (a list of Python values, or a pyarrow array) and returns arrays of
its length; `present` and `sound` are [n] bool. A cell that is present and not sound could not be read as what it should
be; whether what was read obeys the rules of the API is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.features.items.times import parse_time

Bools = npt.NDArray[np.bool_]
TimeUnit = Literal["auto", "s", "ms", "us"]
FACTORS = {"s": 1_000_000, "ms": 1000, "us": 1}
# 1e11 s is the year 5138 and 1e11 ms March 1973; 1e14 ms is the year 5138 and 1e14 us March 1973.
_SECONDS_BELOW, _MILLISECONDS_BELOW = 1e11, 1e14
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999."""
_EXACT_DIGITS = 18
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d)?(\.\d+)?\s?([Zz]|UTC|[+-]\d\d:?\d\d)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Texts:
    """`values`: pyarrow strings, null where absent or not sound."""

    values: pa.Array
    present: Bools
    sound: Bools


@dataclass(frozen=True, slots=True)
class Numbers:
    """`values` [n] float64 or int64, 0 where absent or not sound."""

    values: npt.NDArray[Any]
    present: Bools
    sound: Bools


def as_array(column: Any, *, empty_is_missing: bool) -> pa.Array:
    """One type for the column; numbers and texts that share one become texts."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = _from_list(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
    elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if empty_is_missing and pa.types.is_string(column.type):
        column = pc.if_else(pc.equal(pc.binary_length(column), 0), pa.scalar(None, pa.string()), column)
    return column


def texts(array: pa.Array) -> Texts:
    """Strings as they are, whole numbers in digits (12.0 of a column with gaps is 12); nothing else is an id."""
    present = _present(array)
    kind = array.type
    if pa.types.is_string(kind):
        return Texts(array, present, present)
    if pa.types.is_integer(kind):
        return Texts(array.cast(pa.string()), present, present)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _floats(array)
        with np.errstate(invalid="ignore"):
            whole = present & np.isfinite(values) & (np.abs(values) < 2**53) & (np.floor(values) == values)
        digits = pa.array(np.where(whole, values, 0).astype(np.int64), mask=~whole).cast(pa.string())
        if pa.types.is_floating(kind):
            present = present & ~np.isnan(values)  # pandas writes gaps so
        return Texts(digits, present, whole)
    return Texts(pa.nulls(len(array), pa.string()), present, np.zeros(len(array), bool))


def numbers(array: pa.Array) -> Numbers:
    """Finite numbers; true and false are none."""
    present = _present(array)
    kind = array.type
    if pa.types.is_string(kind):
        trimmed = pc.utf8_trim_whitespace(array)
        fits = _bools(pc.match_substring_regex(trimmed, _NUMBER))
        values = _floats(pc.if_else(pa.array(fits), trimmed, pa.scalar(None, pa.string())).cast(pa.float64()))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _floats(array)
        fits = present
        if pa.types.is_floating(kind):
            present = present & ~np.isnan(values)
    else:
        return Numbers(np.zeros(len(array)), present, np.zeros(len(array), bool))
    sound = present & fits & np.isfinite(values)
    return Numbers(np.where(sound, values, 0.0), present, sound)


def times_us(array: pa.Array, unit: TimeUnit) -> Numbers:
    """Microseconds since 1970, UTC. Numbers count `unit` since 1970 (`auto` must be decided before); a time or a date
    without an offset is in UTC."""
    present = _present(array)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = array.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False)
        counted = stamps.cast(pa.int64())
        return _in_range(np.asarray(pc.fill_null(counted, 0), np.int64), present, present)
    if pa.types.is_integer(kind) and unit != "auto":
        whole = np.asarray(pc.fill_null(array, 0).cast(pa.int64(), safe=False), np.int64)
        fits = np.abs(whole) <= LAST_US // FACTORS[unit]
        return _in_range(np.where(fits, whole, 0) * FACTORS[unit], present, present & fits)
    if unit != "auto":
        read = numbers(array)
        if (read.sound == read.present).all():
            return _scaled(read, unit)
    if not pa.types.is_string(kind):
        return Numbers(np.zeros(len(array), np.int64), present, np.zeros(len(array), bool))
    return _read_texts(array, present, unit)


def _scaled(read: Numbers, unit: str) -> Numbers:
    fits = np.abs(read.values) <= LAST_US / FACTORS[unit]
    counted = np.rint(np.where(fits, read.values, 0) * FACTORS[unit]).astype(np.int64)
    return _in_range(counted, read.present, read.sound & fits)


def _read_texts(array: pa.Array, present: Bools, unit: TimeUnit) -> Numbers:
    """Each distinct text once: times repeat, and days do so all the time."""
    encoded = array.dictionary_encode()
    read = [_text_us(text, unit) for text in encoded.dictionary.to_pylist()]
    us = np.array([0 if value is None else value for value in read] or [0], np.int64)
    good = np.array([value is not None for value in read] or [False], bool)
    places = np.asarray(pc.fill_null(encoded.indices, 0), np.int64)
    return _in_range(us[places], present, present & good[places])


def _text_us(text: str, unit: TimeUnit) -> int | None:
    text = text.strip()
    found = _ISO.fullmatch(text)
    if found is not None:
        day, clock, seconds, fraction, offset = found.groups()
        offset = "Z" if offset in (None, "UTC") else offset
        if len(offset) == len("+0200"):
            offset = f"{offset[:3]}:{offset[3:]}"
        return parse_time(f"{day}T{clock or '00:00'}{seconds or ':00'}{fraction or ''}{offset}")
    if unit == "auto" or re.fullmatch(_NUMBER, text) is None:
        return None
    if text.isdigit() and len(text) <= _EXACT_DIGITS:
        us = int(text) * FACTORS[unit]
    else:
        counted = float(text) * FACTORS[unit]
        us = round(counted) if abs(counted) <= LAST_US else LAST_US + 1
    return us if abs(us) <= LAST_US else None


def decide_unit(array: pa.Array) -> Literal["s", "ms", "us"]:
    """By the size of the numbers; a column of texts that are no numbers gets `s`, which then does not matter."""
    read = numbers(array)
    if not read.sound.any():
        return "s"
    middle = float(np.median(np.abs(read.values[read.sound])))
    if middle < _SECONDS_BELOW:
        return "s"
    return "ms" if middle < _MILLISECONDS_BELOW else "us"


def show_us(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _in_range(us: npt.NDArray[np.int64], present: Bools, sound: Bools) -> Numbers:
    fits = sound & (us >= FIRST_US) & (us <= LAST_US)
    return Numbers(np.where(fits, us, 0), present, fits)


def _from_list(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str:
    """Of a column of several types. NUL is no character of an id, a number or a time, so that is refused later."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else f"\0{value}"


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _floats(array: pa.Array) -> npt.NDArray[np.float64]:
    filled = array.cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(filled, float("nan")), np.float64)


def _present(array: pa.Array) -> Bools:
    return _bools(pc.is_valid(array))


def _bools(array: pa.Array) -> Bools:
    return np.asarray(pc.fill_null(array, False), dtype=bool)
