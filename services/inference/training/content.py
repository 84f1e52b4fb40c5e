"""Content tokens: what is known of an item beside its number, so that rare items share what they have in common.

A token is a category, a value of a declared feature field, or a word of the title. Tokens that fewer than `MIN_ITEMS`
items have say nothing about anything else and are left out. `Tokeniser` is frozen with a model and lies in its folder,
so that an item which comes later gets the tokens that training would have given it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared.schema import FieldType, Schema

FORMAT = 1
"""Of a tokeniser's file."""
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


class Tokeniser:
    """`tokens` name the rows of the token table from 1 on (0: no token); `features` are the declared feature fields in
    the order of the declaration, `bounds` the rising upper bounds of each number field's buckets. `width` K: tokens an
    item has at most; categories and features come before words."""

    def __init__(
        self,
        tokens: Sequence[str],
        features: Mapping[str, FieldType],
        bounds: Mapping[str, npt.NDArray[np.float64]],
        width: int,
    ) -> None:
        self.tokens = tuple(tokens)
        self.features = dict(features)
        self.width = width
        self._bounds = dict(bounds)
        self._place = {token: number for number, token in enumerate(self.tokens, 1)}

    def encode(self, item: Item) -> tuple[int, ...]:
        """Rows of the token table. A value that the field's type does not allow is no token, see `unfit`."""
        found = (self._place.get(token, 0) for token in self.named(item))
        return tuple(dict.fromkeys(place for place in found if place))[: self.width]

    def named(self, item: Item) -> Iterable[str]:
        """Tokens by name, those included that the table does not have."""
        for category in item.categories:
            yield f"category={category}"
        for name, field_type in self.features.items():
            value = item.properties.get(name)
            if value is not None and self._takes(name, value):
                for text in self._values(name, field_type, value):
                    yield f"{name}={text}"
        for word in _WORD.findall((item.title or "").lower()):
            yield f"title={word}"

    def unfit(self, item: Item) -> list[str]:
        """Properties of `item` that are features of this model and cannot become tokens: of another type than the model
        was trained with, or numbers in a folder from before buckets were kept."""
        given = ((name, item.properties.get(name)) for name in self.features)
        return [name for name, value in given if value is not None and not self._takes(name, value)]

    def dumps(self) -> str:
        """What `loads` reads; floats keep every bit."""
        bounds = {name: values.tolist() for name, values in self._bounds.items()}
        return json.dumps(
            {"format": FORMAT, "width": self.width, "features": self.features, "bounds": bounds, "tokens": self.tokens}
        )

    @classmethod
    def loads(cls, text: str, *, width: int, features: Mapping[str, FieldType]) -> Tokeniser:
        """The folders before `FORMAT` 1 hold the list of tokens alone: `width` (of the architecture) and `features` are
        for these. Another format is a model without tokens. Raises ValueError, KeyError or TypeError for damage."""
        found = json.loads(text)
        if isinstance(found, list):
            return cls([str(token) for token in found], features, {}, width)
        if found["format"] != FORMAT:
            return cls((), {}, {}, 0)
        bounds = {str(name): np.asarray(values, np.float64) for name, values in found["bounds"].items()}
        return cls([str(token) for token in found["tokens"]], found["features"], bounds, int(found["width"]))

    def _takes(self, name: str, value: Any) -> bool:
        field_type = self.features[name]
        if field_type in ("number", "timestamp"):
            return name in self._bounds and _is_number(field_type, value)
        if field_type == "strings":
            return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        return isinstance(value, bool if field_type == "boolean" else str)

    def _values(self, name: str, field_type: FieldType, value: Any) -> Iterable[str]:
        if field_type == "strings":
            return [str(text) for text in value]
        if field_type in ("number", "timestamp"):
            return [str(int(np.searchsorted(self._bounds[name], _number(value), side="right")))]
        return [str(value)]


@dataclass(frozen=True, slots=True)
class Content:
    """`table` [V+1, K] int64: rows of the token table, see `Tokeniser`."""

    tokeniser: Tokeniser
    table: npt.NDArray[np.int64]

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.tokeniser.tokens

    @property
    def vocabulary(self) -> int:
        return len(self.tokens) + 1

    @classmethod
    def none(cls, *, vocabulary: int, width: int) -> Content:
        return cls(Tokeniser((), {}, {}, width), np.zeros((vocabulary + 1, width), np.int64))

    @classmethod
    def of(cls, items: Sequence[Item], schema: Schema, *, vocabulary: int, width: int, most: int) -> Content:
        """`width` is K, `most` bounds the token table."""
        features, bounds = feature_types(schema), _numbers(items, schema)
        naming = Tokeniser((), features, bounds, width)
        counts = Counter(token for item in items for token in set(naming.named(item)))
        frequent = sorted((t for t, n in counts.items() if n >= MIN_ITEMS), key=lambda t: (-counts[t], t))
        tokeniser = Tokeniser(frequent[: most - 1], features, bounds, width)
        table = np.zeros((vocabulary + 1, width), np.int64)
        for item in items:
            if 0 <= item.item_index < vocabulary:
                found = tokeniser.encode(item)
                table[item.item_index, : len(found)] = found
        return cls(tokeniser, table)


def feature_types(schema: Schema) -> dict[str, FieldType]:
    return {name: field.type for name, field in schema.item_fields.items() if field.feature}


def schema_hash(schema: Schema) -> str:
    """Of the declared item fields that became tokens: another hash means another meaning of the table."""
    features = dict(sorted(feature_types(schema).items()))
    return hashlib.sha256(json.dumps(features).encode()).hexdigest()[:16]


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


def _is_number(field_type: FieldType, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str if field_type == "timestamp" else int | float):
        return False
    try:
        return math.isfinite(_number(value))
    except (ValueError, OverflowError):
        return False


def _number(value: Any) -> float:
    """Timestamps are RFC 3339 text in the catalogue."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).astimezone(UTC).timestamp()
    return float(value)
