"""What the parser produces: a tree of at most 64 levels in which every node knows its character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Comparison = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class ItemField:
    name: str
    position: int


@dataclass(frozen=True, slots=True)
class UserField:
    name: str
    position: int


@dataclass(frozen=True, slots=True)
class ContextField:
    """`context.<name>` of the request; in targeting only."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    position: int


@dataclass(frozen=True, slots=True)
class Literally:
    value: str | float | bool
    position: int


@dataclass(frozen=True, slots=True)
class Now:
    position: int


Operand = ItemField | UserField | ContextField | Parameter | Literally | Now


@dataclass(frozen=True, slots=True)
class Compare:
    left: Operand
    operator: Comparison
    right: Operand
    position: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Member:
    """`left IN (values)`; `values` hold one entry at least."""

    left: Operand
    values: tuple[Operand, ...]
    negated: bool
    position: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Contains:
    left: Operand
    right: Operand
    position: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class IsNull:
    operand: Operand
    negated: bool
    position: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Truth:
    """A boolean operand as a test of its own."""

    operand: Operand
    position: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Not:
    inner: Expression
    depth: int


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Expression, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Expression, ...]
    depth: int


Expression = Compare | Member | Contains | IsNull | Truth | Not | And | Or
