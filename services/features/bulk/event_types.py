"""Event types out of a file: their names, codes, bands and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.features.bulk.observe import BATCH_ROWS, MAX_ROWS
from services.features.bulk.roles import RATING_WORDS, snake
from services.features.bulk.sources import Source
from services.features.bulk.values import as_array, numbers, texts
from shared.errors import ValidationFailed
from shared.schema import DEFAULT_EVENT_TYPES, Band, EventType

TYPES_MAX = 60
# Codes below are those of the types that every installation knows; they stay theirs.
FIRST_CODE = 20
_CODE_MAX = 127
_LIKE = {
    "purchase": ("transaction", "transactions", "buy", "bought", "order", "checkout", "sale", "paid", "subscribe"),
    "add_to_cart": ("addtocart", "cart", "add_cart", "basket", "add_to_basket", "cart_add"),
    "click": ("clicks", "clk", "item_click", "product_click", "open", "tap"),
    "view": ("pageview", "page_view", "pv", "product_view", "item_view", "detail", "detail_page_view", "visit", "read"),
    "like": ("fav", "favorite", "favourite", "wishlist", "save", "heart", "upvote", "bookmark", "follow"),
    "dislike": ("downvote", "hate", "skip", "hide", "report", "not_interested"),
    "watch": ("play", "listen", "stream", "video_play", "long_view", "complete"),
    "impression": ("show", "shown", "exposure", "display"),
    "share": ("forward", "send"),
}
_SECONDS = ("second", "duration", "time", "dwell", "watch", "play")
_MONEY = ("price", "amount", "revenue", "total", "cost")


@dataclass
class Seen:
    """`rows` of one event type; `valued` of them with a number between `lowest` and `highest`."""

    rows: int = 0
    valued: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")


@dataclass(frozen=True)
class Found:
    """`declared` name -> type; `renamed` what the file says -> name, where they differ; `notes` name -> comment."""

    declared: dict[str, EventType] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def count_types(
    source: Source, type_column: str | None, value_column: str | None, *, name: str, max_rows: int = MAX_ROWS
) -> dict[str, Seen]:
    """What the file says -> how often, and with which numbers. Without a column of types all rows are of `name`.
    Raises ValidationFailed for a column that cannot be one of event types."""
    wanted = [column for column in (type_column, value_column) if column is not None]
    seen: dict[str, Seen] = {}
    rows = 0
    for chunk in source.read(wanted or source.columns[:1], batch_rows=BATCH_ROWS):
        if rows >= max_rows:
            break
        rows += len(chunk.rows)
        empty = source.empty_is_missing
        if type_column is None:
            kinds = pa.repeat(pa.scalar(name), len(chunk.rows))
        else:
            kinds = texts(as_array(chunk.columns[type_column], empty_is_missing=empty)).values
        encoded = kinds.dictionary_encode()
        places = np.asarray(pc.fill_null(encoded.indices, -1), np.int64)
        value = numbers(as_array(chunk.columns[value_column], empty_is_missing=empty)) if value_column else None
        for place, text in enumerate(encoded.dictionary.to_pylist()):
            entry, mine = seen.setdefault(text, Seen()), places == place
            entry.rows += int(mine.sum())
            if value is not None and (mine & value.sound).any():
                mine &= value.sound
                entry.valued += int(mine.sum())
                entry.lowest = min(entry.lowest, float(value.values[mine].min()))
                entry.highest = max(entry.highest, float(value.values[mine].max()))
        if len(seen) > TYPES_MAX:
            raise ValidationFailed(
                f"column {type_column!a} has more than {TYPES_MAX} different values, so it is none of event types; "
                "say which one is: --map event_type=COLUMN, or that there is none: --const event_type=click"
            )
    return seen


def declare(seen: Mapping[str, Seen], value_column: str | None) -> Found:
    """The most frequent first. Raises ValidationFailed when there are more than codes."""
    found = Found()
    code = FIRST_CODE
    for text, counted in sorted(seen.items(), key=lambda each: (-each[1].rows, each[0])):
        name = event_name(text)
        if name != text:
            found.renamed[text] = name
        if name in found.declared:
            found.notes[name] += f"; {text!a} too: {counted.rows:,} rows"
            continue
        declared, code = _declared(name, counted, value_column, code)
        if code > _CODE_MAX + 1:
            raise ValidationFailed("there are more event types than codes; leave some out")
        found.declared[name] = declared
        found.notes[name] = f"{counted.rows:,} rows" + (f", in the file {text!a}" if name != text else "")
        if declared.bands:
            found.notes[name] += f"; values from {counted.lowest:g} to {counted.highest:g}"
    return found


def event_name(text: str) -> str:
    """As silkrec.yaml may call it: `addToCart` is add_to_cart, `1` is type_1."""
    name = snake(text) or "unnamed"
    return (name if name[0].isalpha() else f"type_{name}")[:64]


def known_event(text: str) -> bool:
    """A word that only names of event types use."""
    name = event_name(text)
    return name in DEFAULT_EVENT_TYPES or any(name in names for names in _LIKE.values())


def weights(found: Found) -> dict[str, float]:
    """Of a first scene: what is worth more counts more. Never empty."""
    actions = [action for name, declared in found.declared.items() for action in _actions(name, declared)]
    worth = {action: weight for action, weight, sentiment in actions if weight > 0 and sentiment == "positive"}
    first = next(iter(found.declared))
    return worth or {_actions(first, found.declared[first])[-1][0]: 1.0}


def _actions(name: str, declared: EventType) -> list[tuple[str, float, str]]:
    if not declared.bands:
        return [(name, declared.popularity, declared.sentiment)]
    return [
        (
            band.name,
            declared.popularity if band.popularity is None else band.popularity,
            band.sentiment or declared.sentiment,
        )
        for band in declared.bands
    ]


def _declared(name: str, counted: Seen, value_column: str | None, code: int) -> tuple[EventType, int]:
    like = next((known for known, names in _LIKE.items() if name == known or name in names), name)
    model = DEFAULT_EVENT_TYPES.get(like)
    if any(word in name.split("_") for word in RATING_WORDS) and counted.valued == counted.rows:
        codes = [9, 10, 11] if name == "rating" else [code, code + 1, code + 2]
        return _banded(name, counted, codes), code if name == "rating" else code + 3
    own = name in DEFAULT_EVENT_TYPES and model is not None and model.code is not None
    fields = {"unit": _unit(value_column) if counted.valued else None}
    if model is not None and model.code is not None:
        plain = model.model_dump(exclude={"code", "unit", "bands"}, exclude_defaults=True)
        number = model.code if own else code
        return EventType(code=number, **fields, **plain), code if own else code + 1
    return EventType(code=code, **fields), code + 1


def _banded(name: str, counted: Seen, codes: list[int]) -> EventType:
    """Of five stars below 3 is bad, below 4 so-so: the half and three quarters of the scale. One value is no scale."""
    low, high = counted.lowest, counted.highest
    if high <= low:
        return EventType(unit="stars", bands=(Band(name=f"{name}_high", code=codes[2], popularity=2.0),))
    return EventType(
        unit="stars",
        bands=(
            Band(name=f"{name}_low", code=codes[0], below=low + (high - low) / 2, sentiment="negative", popularity=0.0),
            Band(name=f"{name}_mid", code=codes[1], below=low + (high - low) * 0.75, sentiment="neutral"),
            Band(name=f"{name}_high", code=codes[2], popularity=2.0),
        ),
    )


def _unit(column: str | None) -> str | None:
    name = snake(column or "")
    if any(word in name for word in _MONEY):
        return "currency"
    if any(word in name for word in _SECONDS):
        return "milliseconds" if name.endswith("_ms") else "seconds"
    return None if name in ("", "value", "event_value", "weight") else name
