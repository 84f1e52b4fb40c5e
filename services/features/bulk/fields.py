"""Item and user fields out of the columns that are left: name, type, and what they may be used for."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.features.bulk.guess import Guess
from services.features.bulk.observe import DISTINCT_MAX, Column, Observed
from services.features.bulk.records import CORE_TYPES
from services.features.bulk.roles import snake
from shared.schema import CORE_ITEM_FIELDS, FieldType

# A filter compares words, not paragraphs.
_FILTER_LENGTH = 60
_NAME_MAX = 64
_CORE_USER = frozenset({"user_id", "segments", "properties"})


@dataclass(frozen=True)
class FieldGuess:
    name: str
    column: str
    type: FieldType
    filterable: bool
    feature: bool
    note: str


@dataclass(frozen=True)
class Fields:
    """`mapped` field -> column, of declared fields named otherwise and of embeddings. `separators` field -> what
    separates the entries of its lists, core fields included."""

    declared: list[FieldGuess] = field(default_factory=list)
    mapped: dict[str, str] = field(default_factory=dict)
    separators: dict[str, str] = field(default_factory=dict)


def guess_fields(found: Guess, observed: Observed) -> Fields:
    fields = Fields()
    for name, source in found.columns.items():
        separator = observed.columns[source].separator
        if CORE_TYPES.get(name) == "strings" and separator is not None:
            fields.separators[name] = separator
    taken = set(CORE_ITEM_FIELDS if found.kind == "items" else _CORE_USER) | {"properties", "embeddings"}
    for column in found.rest(observed):
        if column.present == 0:
            continue
        name = _name(column.name, taken)
        if column.vectors == column.present:
            fields.mapped[f"embeddings.{name}"] = column.name
            continue
        if column.objects:
            continue
        taken.add(name)
        declared = _guess(name, column, observed)
        fields.declared.append(declared)
        if name != column.name:
            fields.mapped[name] = column.name
        if declared.type == "strings" and column.separator is not None:
            fields.separators[name] = column.separator
    return fields


def _guess(name: str, column: Column, observed: Observed) -> FieldGuess:
    kind, note = _type(column)
    gaps = observed.rows - observed.malformed - column.present
    if gaps > 0:
        note += f"; empty in {gaps:,} rows"
    words = kind == "strings" or (kind == "string" and not column.many and 1 < len(column.values) < column.present)
    short = column.average_length <= _FILTER_LENGTH
    return FieldGuess(name, column.name, kind, short or kind != "string", words, f"guessed: {note}")


def _type(column: Column) -> tuple[FieldType, str]:
    if column.is_list:
        return "strings", "lists"
    if column.is_boolean or (column.is_flag and snake(column.name).startswith(("is_", "has_"))):
        return "boolean", "true and false only"
    numeric = column.is_numeric
    if column.is_time and not (numeric and not _names_time(column)):
        return "timestamp", "times"
    if numeric:
        return "number", f"numbers from {column.lowest:g} to {column.highest:g}"
    separator = column.separator
    if separator is not None:
        return "strings", f"lists separated by {separator!a}"
    return "string", f"{len(column.values):,} different texts" if not column.many else f"over {DISTINCT_MAX:,} texts"


def _names_time(column: Column) -> bool:
    """A number may be a moment by chance: 1,600,000,000 bytes."""
    parts = snake(column.name).split("_")
    return any(part in ("time", "timestamp", "ts", "date", "at", "datetime", "since", "until") for part in parts)


def _name(column: str, taken: set[str]) -> str:
    plain = snake(column) or "field"
    plain = (plain if plain[0].isalpha() else f"f_{plain}")[:_NAME_MAX]
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain[: _NAME_MAX - 4]}_{number}", number + 1
    return name
