"""Which kind of data a file holds and which column is which field: by names first, by content where they are silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.features.bulk.event_types import known_event
from services.features.bulk.observe import Column, Observed
from services.features.bulk.plan import Kind
from services.features.bulk.roles import ITEM_NAMES, NAMES, RATING_WORDS, guess_column, snake
from shared.errors import ValidationFailed

_USER_WORDS = ("user", "customer", "member", "visitor", "client", "people", "subscriber")
_TYPES_MAX = 60
_STARS_MAX, _STARS_DISTINCT = 10, 21


@dataclass
class Guess:
    """`columns` field -> column; `why` field -> on what grounds, for the comments of the draft."""

    kind: Kind
    columns: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, column: str | None, why: str) -> None:
        if column is not None and name not in self.columns:
            self.columns[name], self.why[name] = column, why

    def rest(self, observed: Observed) -> list[Column]:
        used = set(self.columns.values())
        return [column for name, column in observed.columns.items() if name not in used]


def guess(path: Path, observed: Observed, mapped: Mapping[str, str], kind: Kind | None) -> Guess:
    """`mapped` is what the caller knows. Raises ValidationFailed with the option to write."""
    names = list(observed.columns)
    for name, column in mapped.items():
        if column not in observed.columns:
            raise ValidationFailed(
                f"--map {name}={column}: there is no such column in {path} (columns found: {', '.join(names)})"
            )
    chosen = kind or _kind(path, observed, mapped)
    found = Guess(chosen, dict(mapped), dict.fromkeys(mapped, "by --map"))
    if chosen == "events":
        _events(path, observed, found)
    elif chosen == "items":
        found.take("item_id", guess_column("item_id", names), "by its name")
        _require(path, found, "item_id", names)
        _items(observed, found)
    else:
        found.take("user_id", guess_column("user_id", names) or guess_column("item_id", names), "by its name")
        _require(path, found, "user_id", names)
        segments = next((name for name in names if snake(name) in ("segments", "segment", "cohorts")), None)
        found.take("segments", segments, "by its name")
    return found


def looks_like_rating(column: Column) -> bool:
    if not column.is_numeric:
        return False
    named = any(word in snake(column.name).split("_") for word in RATING_WORDS)
    few = not column.many and len(column.values) <= _STARS_DISTINCT
    return named or (few and column.lowest >= 0 and 1 < column.highest <= _STARS_MAX)


def _kind(path: Path, observed: Observed, mapped: Mapping[str, str]) -> Kind:
    names = list(observed.columns)
    has = {name: name in mapped or guess_column(name, names) is not None for name in NAMES}
    user = has["user_id"] or has["visitor_id"]
    about_users = any(word in snake(path.stem) for word in _USER_WORDS)
    if user and has["item_id"] and not (about_users and not has["occurred_at"]):
        return "events"
    if about_users and (user or has["item_id"]):
        return "users"
    who = mapped.get("user_id") or guess_column("user_id", names) or guess_column("visitor_id", names)
    if who is not None and who in observed.columns and observed.columns[who].repeats and not has["item_id"]:
        return "events"  # of a profile there is one a user; the column of the items has yet to be found
    if has["item_id"]:
        return "items"
    if user:
        return "users"
    raise ValidationFailed(
        f"{path}: no column looks like an item or a user (columns found: {', '.join(names)}). "
        "Say which: --map user_id=COLUMN,item_id=COLUMN, and --events, --items or --users"
    )


def _events(path: Path, observed: Observed, found: Guess) -> None:
    names = list(observed.columns)
    for name in ("user_id", "visitor_id"):
        found.take(name, guess_column(name, names), "by its name")
    if "user_id" in found.columns and found.columns.get("visitor_id") == found.columns["user_id"]:
        del found.columns["visitor_id"]
    found.take("item_id", guess_column("item_id", names), "by its name")
    found.take("occurred_at", _first_named("occurred_at", observed, lambda column: column.is_time), "by its name")
    times = [column.name for column in found.rest(observed) if column.is_time]
    found.take("occurred_at", times[0] if times else None, "its values are times")
    types = _first_named("event_type", observed, lambda column: not column.many and len(column.values) <= _TYPES_MAX)
    found.take("event_type", types, "by its name")
    telling = [column.name for column in found.rest(observed) if any(map(known_event, column.values))]
    found.take("event_type", telling[0] if telling else None, "its values are names of events")
    used = set(found.columns.values())
    value = _first_named("event_value", observed, lambda column: column.is_numeric and column.name not in used)
    found.take("event_value", value, "by its name")
    stars = [column.name for column in found.rest(observed) if looks_like_rating(column) and not column.is_flag]
    if "event_type" not in found.columns and len(stars) == 1:
        found.take("event_value", stars[0], "few numbers, as stars are")
    for name in ("session_id", "event_id"):
        free = [column.name for column in found.rest(observed)]
        found.take(name, guess_column(name, free), "by its name")
    if ("user_id" in found.columns or "visitor_id" in found.columns) != ("item_id" in found.columns):
        ids = [column.name for column in found.rest(observed) if _may_be_id(column)]
        missing = "user_id" if "item_id" in found.columns else "item_id"
        found.take(missing, ids[0] if len(ids) == 1 else None, "the only other column that could be ids")
    if "visitor_id" not in found.columns:
        _require(path, found, "user_id", names)
    for name in ("item_id", "occurred_at"):
        _require(path, found, name, names)


_FITS: Mapping[str, Callable[[Column], bool]] = {
    "price": lambda column: column.is_numeric and column.lowest >= 0,
    "created_at": lambda column: column.is_time,
    "available_from": lambda column: column.is_time,
    "available_until": lambda column: column.is_time,
    "is_hidden": lambda column: column.is_boolean or column.is_flag,
    "title": lambda column: not column.is_list and not column.objects,
    "categories": lambda column: not column.objects and not column.vectors,
    "item_type": lambda column: not column.many,
    "currency": lambda column: not column.many and column.longest == len("EUR"),
}


def _items(observed: Observed, found: Guess) -> None:
    for name, known in ITEM_NAMES.items():
        found.take(name, _first(known, found.rest(observed), _FITS[name]), "by its name")


def _first_named(name: str, observed: Observed, fits: Callable[[Column], bool]) -> str | None:
    return _first(NAMES[name], list(observed.columns.values()), fits)


def _first(known: Sequence[str], columns: Sequence[Column], fits: Callable[[Column], bool]) -> str | None:
    by_name = {snake(column.name): column for column in reversed(columns)}
    return next((by_name[name].name for name in known if name in by_name and fits(by_name[name])), None)


def _may_be_id(column: Column) -> bool:
    plain = not (column.lists or column.objects or column.booleans or column.is_time or column.is_flag)
    return plain and column.present > 0 and (not column.is_numeric or column.whole) and column.longest <= 256


def _require(path: Path, found: Guess, name: str, names: list[str]) -> None:
    if name not in found.columns:
        raise ValidationFailed(
            f"{path}: no column looks like {name} (columns found: {', '.join(names)}). "
            f"Say which one it is: --map {name}=COLUMN"
        )
