"""Which column of a file is which field of the API: `--map`, `--const`, and columns that have the right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.features.bulk.roles import guess_column
from shared.errors import ValidationFailed
from shared.schema import CORE_ITEM_FIELDS, Schema

Kind = Literal["events", "items", "users"]
EVENT_FIELDS = (
    "event_id", "event_type", "user_id", "visitor_id", "item_id", "session_id", "event_value", "occurred_at",
    "recommendation_id", "position", "impression", "properties",
)  # fmt: skip
_REQUIRED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "events": (("user_id", "visitor_id"), ("item_id",), ("event_type",), ("occurred_at",)),
    "items": (("item_id",),),
    "users": (("user_id",),),
}
# A column with the name of one of these is taken without being asked for; the others might mean something else.
_FREE = ("properties.", "embeddings.")


@dataclass(frozen=True, slots=True)
class Plan:
    """`columns` field -> column, `constants` field -> text; a field is in one of them. `ignored`: the other columns."""

    kind: Kind
    columns: Mapping[str, str]
    constants: Mapping[str, str]
    ignored: tuple[str, ...]


def parse_pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """`a=b,c=d` and repeated options alike. Raises ValidationFailed."""
    pairs: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name, value = name.strip(), value.strip()
            if not equals or not name or not value:
                raise ValidationFailed(f"{option} {part.strip()!r}: write NAME=VALUE, several of them with commas")
            if name in pairs and pairs[name] != value:
                raise ValidationFailed(f"{option} says {name}={pairs[name]} and {name}={value}; keep one")
            pairs[name] = value
    return pairs


def make_plan(
    kind: Kind, columns: Sequence[str], mapped: Mapping[str, str], constants: Mapping[str, str], schema: Schema
) -> Plan:
    """Raises ValidationFailed that lists the columns found and the option to write."""
    known = _fields(kind, schema)
    for option, given in (("--map", mapped), ("--const", constants)):
        for name in given:
            if name not in known and not name.startswith(_free(kind)):
                raise ValidationFailed(f"{option} {name}=…: {kind} have no field {name!a}{_hint(name, known)}")
    for name, column in mapped.items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, 1)
            did = f"; did you mean {name}={near[0]}?" if near else ""
            raise ValidationFailed(f"--map {name}={column}: there is no column {column!a}{did} {_found(columns)}")
    both = sorted(mapped.keys() & constants.keys())
    if both:
        raise ValidationFailed(f"{both[0]} is given by --map and by --const; keep one")
    chosen = {name: name for name in columns if name in known and name not in constants} | dict(mapped)
    _require(kind, columns, {**chosen, **constants})
    used = set(chosen.values())
    return Plan(kind, chosen, dict(constants), tuple(name for name in columns if name not in used))


def _fields(kind: Kind, schema: Schema) -> dict[str, None]:
    """In the order in which they are listed to the user."""
    if kind == "events":
        return dict.fromkeys(EVENT_FIELDS)
    if kind == "users":
        return dict.fromkeys(("user_id", "segments", "properties", *schema.user_fields))
    core = sorted(CORE_ITEM_FIELDS - {"category"})
    return dict.fromkeys((*core, "properties", *schema.item_fields))


def _free(kind: Kind) -> tuple[str, ...]:
    return _FREE if kind == "items" else _FREE[:1]


def _require(kind: Kind, columns: Sequence[str], given: Mapping[str, str]) -> None:
    for choices in _REQUIRED[kind]:
        if any(name in given for name in choices):
            continue
        wanted = choices[0]
        guess = guess_column(wanted, columns)
        example = guess if guess is not None else "COLUMN"
        more = ""
        if wanted == "event_type":
            more = ", or --const event_type=rating where all rows are of one type"
        names = " or ".join(choices)
        raise ValidationFailed(
            f"no column says the {names}. {_found(columns)} Say which: --map {wanted}={example}{more}"
        )


def _found(columns: Sequence[str]) -> str:
    return f"(columns found: {', '.join(columns)})"


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else f"; they have {', '.join(names)}"
