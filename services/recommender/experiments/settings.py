"""What a variant may change of a request, and what it may not. Pure.

diversity     0 to 1            exploration   0 to 0.5          hide_seen   true or false
weights       {action: weight}  candidates    1 to 2000         per_source  1 to 2000
sources       [name, …] those that propose; promotions and backfill always do
ranker        "model", or "retrieval": the order of retrieval, without asking the model
rules         an expression that items must pass beside the scene's own
deadline_ms   5 to 1000; never more than the request itself allows
release       {"model": version, "index": version}, one of both at least: what serves in place of the active release
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.contracts.variant_release import VariantRelease
from shared.errors import FieldError, FilterInvalid

SOURCES = ("user_vector", "behaviour", "context_items", "batch", "popular", "fresh")
"""Of the pipeline, those that a variant may leave out; `promoted` stays, for promotions are the caller's."""

RANKERS = ("model", "retrieval")
MAX_CANDIDATES = 2000
_OF_RELEASE = ("model", "index")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`rules` raises FilterInvalid for an expression that does not fit the declared fields."""

    actions: frozenset[str]
    rules: Callable[[str], object]


def setting_faults(settings: Mapping[str, Any], vocabulary: Vocabulary, pointer: str) -> Iterator[FieldError]:
    """Every fault, at `<pointer>/<name>`."""
    for name, value in settings.items():
        where = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        if name in _OF_RELEASE:
            message = f'a {name} belongs to a release; write "release": {{"{name}": "<version>"}}'
            yield FieldError(where, message, "unknown_setting")
        elif name not in _CHECKS:
            message = f"{name[:64]!a} is no setting of a variant; there are {', '.join(_CHECKS)}"
            yield FieldError(where, message, "unknown_setting")
        else:
            yield from _CHECKS[name](value, vocabulary, where)


def _share(largest: float) -> Check:
    def check(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
        if not _is_number(value) or not 0 <= value <= largest:
            yield FieldError(where, f"must be a number from 0 to {largest:g}")

    return check


def _whole(least: int, largest: int) -> Check:
    def check(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
            yield FieldError(where, f"must be a whole number from {least} to {largest}")

    return check


def _flag(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if not isinstance(value, bool):
        yield FieldError(where, "must be true or false")


def _weights(value: Any, vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if not isinstance(value, Mapping) or not value:
        yield FieldError(where, "must be an object of weights by action, with one at least")
        return
    for action, weight in value.items():
        if action not in vocabulary.actions:
            message = f"{str(action)[:64]!a} is no action; known: {', '.join(sorted(vocabulary.actions))}"
            yield FieldError(f"{where}/{action}", message)
        elif not _is_number(weight):
            yield FieldError(f"{where}/{action}", "must be a finite number")


def _sources(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        yield FieldError(where, f"must be a list of sources, with one at least, of {', '.join(SOURCES)}")
        return
    for place, name in enumerate(value):
        if name not in SOURCES:
            yield FieldError(f"{where}/{place}", f"{str(name)[:64]!a} is no source; there are {', '.join(SOURCES)}")


def _ranker(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if value not in RANKERS:
        yield FieldError(where, f"must be {' or '.join(RANKERS)}")


def _rules(value: Any, vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if not isinstance(value, str) or not value:
        yield FieldError(where, "must be a filter expression")
        return
    try:
        vocabulary.rules(value)
    except FilterInvalid as error:
        for fault in error.errors:
            yield FieldError(where, fault.message, fault.code, fault.position)


def _release(value: Any, _vocabulary: Vocabulary, where: str) -> Iterator[FieldError]:
    if VariantRelease.of(value) is None:
        yield FieldError(where, 'must be {"model": version, "index": version}, with one of both at least')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Check = Callable[[Any, Vocabulary, str], Iterator[FieldError]]
_CHECKS: Mapping[str, Check] = {
    "diversity": _share(1.0),
    "exploration": _share(0.5),
    "weights": _weights,
    "hide_seen": _flag,
    "candidates": _whole(1, MAX_CANDIDATES),
    "per_source": _whole(1, MAX_CANDIDATES),
    "sources": _sources,
    "ranker": _ranker,
    "rules": _rules,
    "deadline_ms": _whole(5, 1000),
    "release": _release,
}
SETTINGS: Sequence[str] = tuple(_CHECKS)
