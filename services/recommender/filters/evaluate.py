"""Typed tests over columns. Everything here has passed the type check; only values can still be missing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from services.recommender.catalogue import MISSING_TIME, Catalogue, View
from services.recommender.catalogue.columns import ArrayColumn, StringColumn, StringsColumn, TextColumn, parse_time
from services.recommender.filters.syntax import Comparison
from shared.contracts.history import Bool, Int32, Int64
from shared.schema import FieldType

Value = str | float | int | bool | None
ITEM_ID = "item_id"
_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


@dataclass(slots=True)
class Context:
    """One evaluation: N candidates of one View, one user, one set of bound $values."""

    catalogue: Catalogue
    view: View
    item_index: Int32
    slots: Int64
    user: Mapping[str, Any]
    parameters: Mapping[tuple[str, FieldType], Sequence[Value]]
    now_us: int
    _gathered: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def values(self, name: str) -> npt.NDArray[Any]:
        """[N] of a number, timestamp, boolean or string (codes) column, gathered once."""
        found = self._gathered.get(name)
        if found is None:
            column = cast("ArrayColumn | StringColumn", self.view.columns[name])
            found = self._gathered[name] = column.values[self.slots]
        return found

    def everything(self, answer: bool) -> Bool:
        return np.full(len(self.item_index), answer)

    def present(self, name: str) -> Bool:
        """[N]: the field is not missing."""
        if name == ITEM_ID:
            exists: Bool = self.slots > 0
            return exists
        column = self.view.columns[name]
        if isinstance(column, StringsColumn):
            filled: Bool = column.length[self.slots] > 0
            return filled
        if isinstance(column, TextColumn):
            texts = column.values
            return np.fromiter((texts[slot] is not None for slot in self.slots.tolist()), np.bool_, len(self.slots))
        values = self.values(name)
        if column.kind == "number":
            number: Bool = ~np.isnan(values)
            return number
        present: Bool = values != MISSING_TIME if column.kind == "timestamp" else values >= 0
        return present

    def among(self, name: str, wanted: Sequence[Value]) -> Bool:
        """[N]: the field, or any entry of a list, equals one of `wanted` (no None inside)."""
        if name == ITEM_ID:
            known = [self.catalogue.index_of(str(text)) for text in wanted]
            found = _any_equal(self.item_index, [index for index in known if index is not None])
            return np.logical_and(found, self.slots > 0)
        column = self.view.columns[name]
        if isinstance(column, StringColumn):
            return _any_equal(self.values(name), [column.dictionary.code(str(text)) for text in wanted])
        if isinstance(column, StringsColumn):
            codes, owner = column.flat(self.slots)
            hit = self.everything(False)
            hit[owner[_any_equal(codes, [column.dictionary.code(str(text)) for text in wanted])]] = True
            return hit
        if isinstance(column, TextColumn):
            texts, asked = column.values, set(wanted)
            return np.fromiter((texts[slot] in asked for slot in self.slots.tolist()), np.bool_, len(self.slots))
        return _any_equal(self.values(name), list(wanted))

    def strings(self, name: str) -> list[str | None]:
        """[N] of a string field, decoded: for comparing two fields, whose codes differ."""
        if name == ITEM_ID:
            indices, slots = self.item_index.tolist(), self.slots.tolist()
            return [self.catalogue.item_id(i) if slot else None for i, slot in zip(indices, slots, strict=True)]
        column = self.view.columns[name]
        return [column.get(slot) for slot in self.slots.tolist()]


class Scalar(Protocol):
    """One value, or a list that is spread, for the whole request; missing entries are left out."""

    def read(self, context: Context) -> Sequence[Value]: ...


class Test(Protocol):
    def mask(self, context: Context) -> Bool: ...


@dataclass(frozen=True, slots=True)
class Constant:
    value: Value

    def read(self, context: Context) -> Sequence[Value]:  # noqa: ARG002
        return (self.value,)


@dataclass(frozen=True, slots=True)
class CurrentTime:
    def read(self, context: Context) -> Sequence[Value]:
        return (context.now_us,)


@dataclass(frozen=True, slots=True)
class FromUser:
    """A profile value of another type than declared is missing: the request is not at fault."""

    name: str
    kind: FieldType

    def read(self, context: Context) -> Sequence[Value]:
        value = context.user.get(self.name)
        if self.kind == "strings":
            return [text for text in value if isinstance(text, str)] if isinstance(value, (list, tuple)) else ()
        converted = convert(value, self.kind)
        return () if converted is None else (converted,)


@dataclass(frozen=True, slots=True)
class FromRequest:
    name: str
    kind: FieldType

    def read(self, context: Context) -> Sequence[Value]:
        return context.parameters[self.name, self.kind]


@dataclass(frozen=True, slots=True)
class FieldAmong:
    """`=`, `!=`, IN, NOT IN, CONTAINS. `spread`: the list may be empty without being missing."""

    name: str
    choices: tuple[Scalar, ...]
    negated: bool
    spread: bool

    def mask(self, context: Context) -> Bool:
        wanted = [value for choice in self.choices for value in choice.read(context)]
        if not wanted and not (self.negated and self.spread):
            return context.everything(False)
        found = context.among(self.name, wanted)
        return context.present(self.name) & ~found if self.negated else found


@dataclass(frozen=True, slots=True)
class FieldOrder:
    name: str
    comparison: Comparison
    right: Scalar

    def mask(self, context: Context) -> Bool:
        value = next(iter(self.right.read(context)), None)
        if value is None:
            return context.everything(False)
        result: Bool = _ORDER[self.comparison](context.values(self.name), value)
        # NaN compares false by itself; a missing time is a number and does not.
        return result & context.present(self.name) if context.values(self.name).dtype.kind == "i" else result


@dataclass(frozen=True, slots=True)
class FieldPair:
    left: str
    comparison: Comparison
    right: str
    text: bool

    def mask(self, context: Context) -> Bool:
        compare = _ORDER[self.comparison]
        both = context.present(self.left) & context.present(self.right)
        if self.text:
            pairs = zip(context.strings(self.left), context.strings(self.right), strict=True)
            return np.fromiter((compare(a, b) for a, b in pairs), np.bool_, len(both)) & both
        result: Bool = compare(context.values(self.left), context.values(self.right)) & both
        return result


@dataclass(frozen=True, slots=True)
class FieldPresent:
    name: str

    def mask(self, context: Context) -> Bool:
        return context.present(self.name)


@dataclass(frozen=True, slots=True)
class ScalarAmong:
    """The same for a value of the request: one answer for all candidates."""

    left: Scalar
    choices: tuple[Scalar, ...]
    negated: bool
    spread: bool

    def mask(self, context: Context) -> Bool:
        own = self.left.read(context)
        wanted = [value for choice in self.choices for value in choice.read(context)]
        if not own or (not wanted and not (self.negated and self.spread)):
            return context.everything(False)
        return context.everything(any(value in wanted for value in own) is not self.negated)


@dataclass(frozen=True, slots=True)
class ScalarOrder:
    left: Scalar
    comparison: Comparison
    right: Scalar

    def mask(self, context: Context) -> Bool:
        left, right = self.left.read(context), self.right.read(context)
        return context.everything(bool(left and right and _ORDER[self.comparison](left[0], right[0])))


@dataclass(frozen=True, slots=True)
class ScalarPresent:
    operand: Scalar

    def mask(self, context: Context) -> Bool:
        return context.everything(bool(self.operand.read(context)))


@dataclass(frozen=True, slots=True)
class AnythingPresent:
    """For a value of no declared type."""

    name: str

    def mask(self, context: Context) -> Bool:
        return context.everything(context.user.get(self.name) is not None)


@dataclass(frozen=True, slots=True)
class Inverse:
    inner: Test

    def mask(self, context: Context) -> Bool:
        return ~self.inner.mask(context)


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Test, ...]

    def mask(self, context: Context) -> Bool:
        result = self.parts[0].mask(context)
        for part in self.parts[1:]:
            result = result & part.mask(context)
        return result


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Test, ...]

    def mask(self, context: Context) -> Bool:
        result = self.parts[0].mask(context)
        for part in self.parts[1:]:
            result = result | part.mask(context)
        return result


def convert(value: Any, kind: FieldType) -> Value:
    """A JSON value as `kind` (timestamps become µs), or None when it is not one."""
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "number":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return float(value) if is_number and not math.isnan(value) else None
    if not isinstance(value, str):
        return None
    return parse_time(value) if kind == "timestamp" else value


_LARGEST = 1.7976931348623157e308


def _any_equal(values: npt.NDArray[Any], wanted: Sequence[Any]) -> Bool:
    if len(wanted) == 1:
        one: Bool = values == wanted[0]
        return one
    return np.isin(values, np.asarray(wanted, values.dtype))
