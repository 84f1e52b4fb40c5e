"""Whom an experiment is for: an expression over the request's context and the user's profile, asked once a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np

from services.recommender.filters import evaluate, syntax
from services.recommender.filters.compiled import CACHE_SIZE, Checker, Fields
from services.recommender.filters.grammar import fault, parse
from shared.schema import FieldType, Schema

_CONTEXT = "context."
_ONE = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class Targeting:
    """`reads_user`: it asks the profile, which must then be read before it can be answered."""

    text: str
    reads_user: bool
    _test: evaluate.Test = field(repr=False)

    def holds(self, user: Mapping[str, Any], context: Mapping[str, Any], now_us: int) -> bool:
        """`user`: profile properties and `segments`. About 5 µs."""
        known = {**user, **{_CONTEXT + name: value for name, value in context.items()}}
        # No test of a targeting looks at items, so there is no catalogue behind this one row.
        nothing: Any = None
        row = cast("Any", _ONE)
        return bool(self._test.mask(evaluate.Context(nothing, nothing, row, row, known, {}, now_us))[0])


def compile_targeting(text: str, schema: Schema) -> Targeting:
    """Raises FilterInvalid with the character, at `/filter`."""
    return _compile(text, tuple((name, declared.type, True) for name, declared in schema.user_fields.items()))


def compile_segment(text: str, schema: Schema) -> Targeting:
    """Users by their profile alone: no request, no context. Raises FilterInvalid as `compile_targeting` does."""
    users = tuple((name, declared.type, True) for name, declared in schema.user_fields.items())
    return _checked(text, _SegmentChecker(users))


@lru_cache(maxsize=CACHE_SIZE)
def _compile(text: str, users: Fields) -> Targeting:
    return _checked(text, _TargetingChecker(users))


def _checked(text: str, checker: _TargetingChecker) -> Targeting:
    test = checker.expression(parse(text))
    if checker.parameters:
        wanted = next(iter(checker.parameters.values()))
        raise fault("targeting has no filter_values; write the value itself", wanted.position)
    return Targeting(text, checker.reads_user, test)


class _TargetingChecker(Checker):
    def __init__(self, users: Fields) -> None:
        super().__init__((), users)
        self.reads_user = False

    def _item(self, operand: syntax.ItemField) -> FieldType:
        raise fault(
            f"{operand.name} is read as an item field, and targeting knows no items; write user.… or context.…",
            operand.position,
        )

    def _user(self, operand: syntax.UserField) -> FieldType:
        self.reads_user = True
        return super()._user(operand)

    def _context(self, operand: syntax.ContextField) -> str:
        return _CONTEXT + operand.name


class _SegmentChecker(_TargetingChecker):
    def _context(self, operand: syntax.ContextField) -> str:
        raise fault("a segment knows no request, so no context; write user.…", operand.position)
