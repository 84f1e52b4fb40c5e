"""Type check and cache: from a tree of names to a CompiledFilter. Everything a caller could get wrong is said here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from services.recommender.catalogue import Catalogue
from services.recommender.catalogue.store import CORE_FIELDS
from services.recommender.filters import evaluate, syntax
from services.recommender.filters.grammar import fault, parse
from shared.contracts.history import Bool, Int32
from shared.errors import FieldError, FilterInvalid
from shared.schema import FieldType, Schema

CACHE_SIZE = 1024
_ARTICLE: Mapping[FieldType, str] = {
    "string": "a string",
    "number": "a number",
    "boolean": "a boolean",
    "strings": "a list of strings",
    "timestamp": "a timestamp",
}
Fields = tuple[tuple[str, FieldType, bool], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A `$name` and what it must be; `spread`: a list is welcome too."""

    name: str
    kind: FieldType
    spread: bool
    position: int


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """Immutable and shared by all requests with the same text."""

    text: str
    parameters: tuple[Wanted, ...]
    _test: evaluate.Test = field(repr=False)

    def mask(
        self,
        catalogue: Catalogue,
        item_index: Int32,
        user: Mapping[str, Any],
        values: Mapping[str, Any],
        now_us: int,
    ) -> Bool:
        """[N] True where the item of `item_index [N]` passes. `user`: profile properties, and `segments`. Raises
        FilterInvalid for a `$name` without a fitting value."""
        bound = self.bind(values)
        view = catalogue.view()
        slots = view.slots(item_index)
        return self._test.mask(evaluate.Context(catalogue, view, item_index, slots, user, bound, now_us))

    def bind(self, values: Mapping[str, Any]) -> Mapping[tuple[str, FieldType], Sequence[evaluate.Value]]:
        """Checks `filter_values` before any candidate exists. Raises FilterInvalid at `/filter_values/<name>`."""
        return {(wanted.name, wanted.kind): _bind(wanted, values) for wanted in self.parameters}


def compile_filter(text: str, schema: Schema) -> CompiledFilter:
    """Parsed and checked once a text and schema. Raises FilterInvalid with the character."""
    items = tuple((name, declared.type, declared.filterable) for name, declared in schema.item_fields.items())
    users = tuple((name, declared.type, True) for name, declared in schema.user_fields.items())
    return _compile(text, items, users)


@lru_cache(maxsize=CACHE_SIZE)
def _compile(text: str, items: Fields, users: Fields) -> CompiledFilter:
    checker = Checker(items, users)
    test = checker.expression(parse(text))
    return CompiledFilter(text, tuple(checker.parameters.values()), test)


class Checker:
    """Recursion is bounded by the parser's 64 levels."""

    def __init__(self, items: Fields, users: Fields) -> None:
        self._items: dict[str, tuple[FieldType, bool]] = {name: (kind, True) for name, kind in CORE_FIELDS.items()}
        self._items |= {"item_id": ("string", True), "category": ("strings", True)}
        self._items |= {name: (kind, filterable) for name, kind, filterable in items}
        self._users: dict[str, FieldType] = {"segments": "strings", **{name: kind for name, kind, _ in users}}
        self.parameters: dict[tuple[str, FieldType], Wanted] = {}

    def expression(self, node: syntax.Expression) -> evaluate.Test:
        match node:
            case syntax.Or(parts):
                return evaluate.Either(tuple(self.expression(part) for part in parts))
            case syntax.And(parts):
                return evaluate.All(tuple(self.expression(part) for part in parts))
            case syntax.Not(inner):
                return evaluate.Inverse(self.expression(inner))
            case syntax.Compare():
                return self._compare(node)
            case syntax.Member():
                return self._member(node)
            case syntax.Contains():
                return self._contains(node)
            case syntax.IsNull(operand, negated):
                present = self._present(operand)
                return present if negated else evaluate.Inverse(present)
            case syntax.Truth(operand):
                return self._truth(operand)

    # ---- the five tests

    def _compare(self, node: syntax.Compare) -> evaluate.Test:
        left, right, comparison = node.left, node.right, node.operator
        if isinstance(right, syntax.ItemField) and not isinstance(left, syntax.ItemField):
            left, right, comparison = right, left, _MIRROR[comparison]
        kind, other = self._kind(left), self._kind(right)
        if kind is None and other is not None:
            left, right, comparison, kind, other = right, left, _MIRROR[comparison], other, kind
        if kind is None:
            raise fault("neither side has a type; compare a $value with a field", node.position)
        if comparison not in ("=", "!=") and kind not in ("number", "timestamp"):
            raise fault(f"{comparison} needs numbers or timestamps, and this is {_ARTICLE[kind]}", node.position)
        if isinstance(left, syntax.ItemField) and isinstance(right, syntax.ItemField):
            return self._pair(left, comparison, right, node.position)
        if isinstance(left, syntax.Literally) and other == "timestamp":
            left, right, comparison, kind = right, left, _MIRROR[comparison], other
        value = self._scalar(right, _entry(kind))
        if comparison in ("=", "!="):
            return self._among(left, kind, (value,), negated=comparison == "!=", spread=False)
        if isinstance(left, syntax.ItemField):
            return evaluate.FieldOrder(left.name, comparison, value)
        return evaluate.ScalarOrder(self._scalar(left, kind), comparison, value)

    def _pair(
        self, left: syntax.ItemField, comparison: syntax.Comparison, right: syntax.ItemField, position: int
    ) -> evaluate.Test:
        kind, other = self._item(left), self._item(right)
        if kind != other or kind == "strings":
            raise fault(f"{left.name} is {_ARTICLE[kind]} and {right.name} {_ARTICLE[other]}", position)
        return evaluate.FieldPair(left.name, comparison, right.name, text=kind == "string")

    def _member(self, node: syntax.Member) -> evaluate.Test:
        kind = self._kind(node.left)
        if kind is None and isinstance(node.left, syntax.ContextField):
            kind = next((found for value in node.values if (found := self._kind(value)) is not None), "string")
        if kind is None:
            raise fault("the left side of IN needs a type; write a field there", node.position)
        if kind == "string" and isinstance(node.left, syntax.Literally):
            raise fault("the left side of IN is a text; write a field there", node.left.position)
        choices = tuple(self._scalar(value, _entry(kind), spread=True) for value in node.values)
        return self._among(node.left, kind, choices, negated=node.negated, spread=True)

    def _contains(self, node: syntax.Contains) -> evaluate.Test:
        kind = self._kind(node.left)
        if kind != "strings":
            seen = "a $value" if kind is None else _ARTICLE[kind]
            raise fault(f"CONTAINS asks a list of strings, and its left side is {seen}", node.left.position)
        if isinstance(node.right, syntax.ItemField):
            if isinstance(node.left, syntax.ItemField):
                raise fault("CONTAINS needs a value on its right side, not an item field", node.right.position)
            right = self._item(node.right)
            if right not in ("string", "strings"):
                raise fault(f"CONTAINS needs a string, and {node.right.name} is {_ARTICLE[right]}", node.right.position)
            choice = self._scalar(node.left, "string", spread=True)
            return evaluate.FieldAmong(_column(node.right.name), (choice,), negated=False, spread=False)
        return self._among(node.left, kind, (self._scalar(node.right, "string"),), negated=False, spread=False)

    def _truth(self, operand: syntax.Operand) -> evaluate.Test:
        kind = self._kind(operand)
        if kind not in ("boolean", None):
            name = getattr(operand, "name", None)
            seen = f"{name} is {_ARTICLE[kind]}" if name else f"this is {_ARTICLE[kind]}"
            raise fault(f"{seen}; compare it with something", operand.position)
        return self._among(operand, "boolean", (evaluate.Constant(True),), negated=False, spread=False)

    def _present(self, operand: syntax.Operand) -> evaluate.Test:
        if isinstance(operand, syntax.ItemField):
            self._item(operand)
            return evaluate.FieldPresent(_column(operand.name))
        if isinstance(operand, syntax.UserField):
            return evaluate.ScalarPresent(self._scalar(operand, self._user(operand), spread=True))
        if isinstance(operand, syntax.ContextField):
            return evaluate.AnythingPresent(self._context(operand))
        raise fault("IS NULL asks a field", operand.position)

    def _among(
        self,
        left: syntax.Operand,
        kind: FieldType,
        choices: tuple[evaluate.Scalar, ...],
        *,
        negated: bool,
        spread: bool,
    ) -> evaluate.Test:
        if isinstance(left, syntax.ItemField):
            return evaluate.FieldAmong(_column(left.name), choices, negated, spread)
        return evaluate.ScalarAmong(self._scalar(left, _entry(kind), spread=True), choices, negated, spread)

    # ---- operands

    def _kind(self, operand: syntax.Operand) -> FieldType | None:
        """None for a $value or a context field: it takes the type of its company."""
        match operand:
            case syntax.ItemField():
                return self._item(operand)
            case syntax.UserField():
                return self._user(operand)
            case syntax.Now():
                return "timestamp"
            case syntax.Literally(value):
                return "boolean" if isinstance(value, bool) else "number" if isinstance(value, float) else "string"
            case _:
                return None

    def _item(self, operand: syntax.ItemField) -> FieldType:
        found = self._items.get(operand.name)
        if found is None:
            raise fault(f"there is no item field {operand.name}{self._hint(operand.name)}", operand.position)
        if not found[1]:
            raise fault(f"{operand.name} is declared `filterable: false`", operand.position)
        return found[0]

    def _user(self, operand: syntax.UserField) -> FieldType:
        kind = self._users.get(operand.name)
        if kind is None:
            near = difflib.get_close_matches(operand.name, self._users, 1)
            hint = f"; did you mean user.{near[0]}?" if near else "; declare it under user_fields"
            raise fault(f"there is no user field {operand.name}{hint}", operand.position)
        return kind

    def _context(self, operand: syntax.ContextField) -> str:
        raise fault("context fields are for the targeting of experiments; pass a $value here", operand.position)

    def _hint(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), self._items, 1)
        if near:
            return f"; did you mean {near[0]}?"
        if name in self._users:
            return f"; did you mean user.{name}?"
        return f"; there are {', '.join(sorted(self._items))}"[:400]

    def _scalar(self, operand: syntax.Operand, kind: FieldType, *, spread: bool = False) -> evaluate.Scalar:
        """A value of type `kind`; `spread` allows lists of it."""
        match operand:
            case syntax.Parameter(name, position):
                self._expect(Wanted(name, kind, spread, position))
                return evaluate.FromRequest(name, kind)
            case syntax.ContextField():
                return evaluate.FromUser(self._context(operand), kind)
            case syntax.Literally(value, position) if kind == "timestamp" and isinstance(value, str):
                moment = evaluate.convert(value, "timestamp")
                if moment is None:
                    raise fault("this is no RFC 3339 time, e.g. 2026-01-31T12:00:00Z", position)
                return evaluate.Constant(moment)
            case syntax.ItemField(name, position):
                raise fault(f"a value is needed here, and {name} is an item field", position)
        own = self._kind(operand)
        if own != kind and not (spread and own == "strings" and kind in ("string", "strings")):
            raise fault(f"{_ARTICLE[kind]} is needed here, and this is {_ARTICLE[own or kind]}", operand.position)
        match operand:
            case syntax.UserField(name):
                return evaluate.FromUser(name, own or kind)
            case syntax.Literally(value):
                return evaluate.Constant(value)
            case _:
                return evaluate.CurrentTime()

    def _expect(self, wanted: Wanted) -> None:
        before = self.parameters.get((wanted.name, wanted.kind))
        # One scalar use forbids a list everywhere: a list there would silently mean its first entry.
        if before is None or before.spread:
            self.parameters[wanted.name, wanted.kind] = wanted


_MIRROR: Mapping[syntax.Comparison, syntax.Comparison] = {
    "=": "=",
    "!=": "!=",
    "<": ">",
    "<=": ">=",
    ">": "<",
    ">=": "<=",
}


def _entry(kind: FieldType) -> FieldType:
    return "string" if kind == "strings" else kind


def _column(name: str) -> str:
    return "categories" if name == "category" else name


def _bind(wanted: Wanted, values: Mapping[str, Any]) -> Sequence[evaluate.Value]:
    pointer = f"/filter_values/{wanted.name}"
    if wanted.name not in values:
        message = f"the filter uses ${wanted.name}, and filter_values has no {wanted.name}"
        raise FilterInvalid(message, errors=[FieldError(pointer, message, "filter_invalid", wanted.position)])
    given = values[wanted.name]
    entries = given if wanted.spread and isinstance(given, (list, tuple)) else (given,)
    converted = [evaluate.convert(entry, wanted.kind) for entry in entries if entry is not None]
    if None in converted:
        allowed = f"{_ARTICLE[wanted.kind]}{' or a list of them' if wanted.spread else ''}"
        message = f"${wanted.name} must be {allowed}"
        raise FilterInvalid(message, errors=[FieldError(pointer, message, "filter_invalid", wanted.position)])
    return converted
