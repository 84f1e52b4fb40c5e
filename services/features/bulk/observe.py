"""What the columns of a file hold: counted in one pass, in memory that does not grow with the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.features.bulk.roles import ITEM_NAMES, snake
from services.features.bulk.sources import Source
from services.features.bulk.values import as_array, decide_unit, numbers, times_us

MAX_ROWS = 1_000_000
BATCH_ROWS = 20_000
# Of columns with more distinct values only the fact is known: an id, a title, a time.
DISTINCT_MAX = 2000
EARLIEST_US, LATEST_US = 631_152_000_000_000, 4_102_444_800_000_000  # 1990 to 2100
SEPARATORS = "|;, "
_BOOLEANS = frozenset({"true", "false", "yes", "no", "t", "f", "y", "n"})
_DIGITS = frozenset({"0", "1"})
_ISO_DAY = re.compile(r"^\d{4}-\d\d-\d\d")


@dataclass
class Column:
    """Counts are rows. `values`: how often each distinct one came, while there are at most DISTINCT_MAX; `many` once
    there were more; `repeats`: one of them came twice. `lowest`, `highest` of the numbers."""

    name: str
    rows: int = 0
    present: int = 0
    numeric: int = 0
    times: int = 0
    lists: int = 0
    vectors: int = 0
    objects: int = 0
    booleans: int = 0
    whole: bool = True
    zero_led: bool = False
    lowest: float = float("inf")
    highest: float = float("-inf")
    longest: int = 0
    total_length: int = 0
    separated: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    many: bool = False
    repeats: bool = False

    @property
    def is_numeric(self) -> bool:
        """Not codes such as 01234, which would lose their zeros."""
        return self.present > 0 and self.numeric == self.present and not self.zero_led

    @property
    def is_time(self) -> bool:
        """ISO texts, database times, or numbers that would be moments between 1990 and 2100."""
        return self.present > 0 and self.times == self.present

    @property
    def is_boolean(self) -> bool:
        if self.present == 0 or self.many:
            return False
        words = {value.lower() for value in self.values}
        return self.booleans == self.present or words <= _BOOLEANS

    @property
    def is_flag(self) -> bool:
        """0 and 1, which may be a number as well."""
        return not self.many and set(self.values) == _DIGITS

    @property
    def is_list(self) -> bool:
        return self.present > 0 and self.lists == self.present

    @property
    def separator(self) -> str | None:
        """The one by which a column of texts is a column of lists: in at least a fifth of the cells, and the parts
        must come again and again, or every address with a comma would be a list."""
        if not self.separated or self.is_numeric or self.present == 0:
            return None
        # Words of a title are no list; a space separates only where the name says that there is one.
        counted = {sep: cells for sep, cells in self.separated.items() if sep != " " or self.name_says_list}
        found, cells = max(counted.items(), key=lambda each: each[1], default=("", 0))
        if found == " " and any(counted.get(sep, 0) for sep in SEPARATORS[:-1]):
            found, cells = max(((s, n) for s, n in counted.items() if s != " "), key=lambda each: each[1])
        if cells < self.present / 5 or self.total_length / self.present > 200:
            return None
        parts = Counter(
            part.strip() for value, times in self.values.items() for part in value.split(found) for _ in range(times)
        )
        return found if parts and len(parts) * 3 <= sum(parts.values()) else None

    @property
    def name_says_list(self) -> bool:
        return snake(self.name) in (*ITEM_NAMES["categories"], "segments", "labels", "keywords", "attributes")

    @property
    def average_length(self) -> float:
        return self.total_length / self.present if self.present else 0.0


@dataclass(frozen=True)
class Observed:
    """`whole`: every row was looked at."""

    columns: Mapping[str, Column]
    rows: int
    whole: bool
    malformed: int


def observe(source: Source, max_rows: int = MAX_ROWS) -> Observed:
    columns = {name: Column(name) for name in source.columns}
    rows = malformed = 0
    whole = True
    for chunk in source.read(source.columns, batch_rows=BATCH_ROWS):
        if rows >= max_rows:
            whole = False
            break
        rows += len(chunk.rows)
        malformed += len(chunk.malformed)
        for name, column in columns.items():
            _add(column, chunk.columns[name], source.empty_is_missing)
    return Observed(columns, rows, whole, malformed)


def _add(column: Column, cells: Any, empty_is_missing: bool) -> None:
    column.rows += len(cells)
    if not isinstance(cells, pa.Array) and any(isinstance(cell, dict | list) for cell in cells):
        _add_nested(column, cells)
        return
    array = as_array(cells, empty_is_missing=empty_is_missing)
    present = int(pc.sum(pc.is_valid(array)).as_py() or 0)
    column.present += present
    kind = array.type
    if present == 0:
        return
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        column.lists += present
        if pa.types.is_floating(kind.value_type):
            column.vectors += present
        return
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        column.objects += present
        return
    if pa.types.is_boolean(kind):
        column.booleans += present
    _add_numbers(column, array)
    _add_times(column, array)
    _add_texts(column, array)


def _add_nested(column: Column, cells: Any) -> None:
    column.present += sum(cell is not None for cell in cells)
    column.lists += sum(isinstance(cell, list) for cell in cells)
    column.vectors += sum(isinstance(cell, list) and bool(cell) and isinstance(cell[0], float) for cell in cells)
    column.objects += sum(isinstance(cell, dict) for cell in cells)


def _add_numbers(column: Column, array: pa.Array) -> None:
    read = numbers(array)
    column.numeric += int(read.sound.sum())
    if read.sound.any():
        values = read.values[read.sound]
        column.lowest = min(column.lowest, float(values.min()))
        column.highest = max(column.highest, float(values.max()))
        column.whole = column.whole and bool((np.floor(values) == values).all())


def _add_times(column: Column, array: pa.Array) -> None:
    """Only what looks like a time: reading every title as one would take longer than all the rest."""
    if pa.types.is_string(array.type):
        first = next((value.as_py() for value in array if value.is_valid), "")
        if not _ISO_DAY.match(first) and not first.replace(".", "").isdigit():
            return
    read = times_us(array, decide_unit(array))
    column.times += int((read.sound & (read.values >= EARLIEST_US) & (read.values <= LATEST_US)).sum())


def _add_texts(column: Column, array: pa.Array) -> None:
    if pa.types.is_boolean(array.type) or not pa.types.is_string(array.type):
        array = array.cast(pa.string())
    column.zero_led = column.zero_led or bool(pc.any(pc.match_substring_regex(array, "^0[0-9]")).as_py())
    lengths = pc.utf8_length(array)
    column.longest = max(column.longest, int(pc.max(lengths).as_py() or 0))
    column.total_length += int(pc.sum(lengths).as_py() or 0)
    for separator in SEPARATORS:
        inside = pc.match_substring(array, separator)
        cells = int(pc.sum(inside).as_py() or 0)
        if cells:
            column.separated[separator] += cells
    if not column.many:
        for entry in pc.value_counts(array.drop_null()):
            column.values[entry["values"].as_py()] += entry["counts"].as_py()
        column.repeats = column.repeats or column.values.total() > len(column.values)
        if len(column.values) > DISTINCT_MAX:
            column.many = True
            if column.separator is None:
                column.values.clear()
