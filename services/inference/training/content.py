"""Content tokens: what is known of an item beside its number, so that rare items share what they have in common.

A token is a category, a value of a declared feature field, or a word of the title. Tokens that fewer than `MIN_ITEMS`
items have say nothing about anything else and are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared.schema import ItemField, Schema

MIN_ITEMS = 2
# Numbers with more distinct values than this are put into quantile buckets.
EXACT_NUMBERS = 128
BUCKETS = 16
_WORD = re.compile(r"\w{3,}")


class Item(Protocol):
    """Of `services.features.reader.ItemRow`."""

    @property
    def item_index(self) -> int: ...
    @property
    def title(self) -> str | None: ...
    @property
    def categories(self) -> Sequence[str]: ...
    @property
    def properties(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Content:
    """`tokens` name the rows of the token table from 1 on (0: no token); `table` [V+1, K] int64."""

    tokens: tuple[str, ...]
    table: npt.NDArray[np.int64]

    @property
    def vocabulary(self) -> int:
        return len(self.tokens) + 1

    @classmethod
    def of(cls, items: Sequence[Item], schema: Schema, *, vocabulary: int, width: int, most: int) -> Content:
        """`width` is K: categories and features come before words; `most` bounds the token table."""
        numbers = _numbers(items, schema)
        named = {item.item_index: list(_tokens(item, schema, numbers)) for item in items}
        counts = Counter(token for tokens in named.values() for token in set(tokens))
        frequent = sorted((t for t, n in counts.items() if n >= MIN_ITEMS), key=lambda t: (-counts[t], t))
        kept = tuple(frequent[: most - 1])
        place = {token: number for number, token in enumerate(kept, 1)}
        table = np.zeros((vocabulary + 1, width), np.int64)
        for item_index, tokens in named.items():
            if 0 <= item_index < vocabulary:
                found = list(dict.fromkeys(place[token] for token in tokens if token in place))[:width]
                table[item_index, : len(found)] = found
        return cls(kept, table)


def schema_hash(schema: Schema) -> str:
    """Of the declared item fields that became tokens: another hash means another meaning of the table."""
    features = {name: field.type for name, field in sorted(schema.item_fields.items()) if field.feature}
    return hashlib.sha256(json.dumps(features).encode()).hexdigest()[:16]


def _tokens(item: Item, schema: Schema, numbers: Mapping[str, npt.NDArray[np.float64]]) -> Iterable[str]:
    for category in item.categories:
        yield f"category={category}"
    for name, field in schema.item_fields.items():
        value = item.properties.get(name)
        if field.feature and value is not None:
            for text in _values(name, field, value, numbers):
                yield f"{name}={text}"
    for word in _WORD.findall((item.title or "").lower()):
        yield f"title={word}"


def _values(name: str, field: ItemField, value: Any, numbers: Mapping[str, npt.NDArray[np.float64]]) -> Iterable[str]:
    if field.type == "strings":
        return [str(text) for text in value]
    if field.type in ("number", "timestamp"):
        return [str(int(np.searchsorted(numbers[name], _number(value), side="right")))]
    return [str(value)]


def _numbers(items: Sequence[Item], schema: Schema) -> dict[str, npt.NDArray[np.float64]]:
    """Upper bounds of each number field's buckets: its values, or quantiles of many."""
    bounds = {}
    for name, field in schema.item_fields.items():
        if field.feature and field.type in ("number", "timestamp"):
            values = [_number(item.properties[name]) for item in items if item.properties.get(name) is not None]
            distinct = np.unique(np.asarray(values, np.float64))
            if len(distinct) > EXACT_NUMBERS:
                distinct = np.unique(np.quantile(values, np.linspace(0, 1, BUCKETS + 1)[1:-1]))
            bounds[name] = distinct
    return bounds


def _number(value: Any) -> float:
    """Timestamps are RFC 3339 text in the catalogue."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).astimezone(UTC).timestamp()
    return float(value)
