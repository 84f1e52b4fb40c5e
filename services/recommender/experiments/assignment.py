"""A unit's bucket and the ranges on it, bit for bit as GrowthBook's SDK defines them.

Source: GrowthBook, "Build your own SDK" (docs.growthbook.io/lib/build-your-own), spec 0.7: `hash`, `getBucketRanges`,
`chooseVariation`, `inNamespace`. A team on GrowthBook gets the same variants here, so nothing may be "improved": the
clamping and the equal weights that stand in for impossible ones are the SDK's. Definitions refuse such input before it
comes here (`definitions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

NOT_IN_EXPERIMENT = -1
"""What `choose_variant` answers for a bucket in no range."""

Range = tuple[float, float]
"""[start, end) on the unit interval."""

_FNV_OFFSET = 0x811C9DC5


class Namespace(NamedTuple):
    """Experiments of one `key` with disjoint [start, end) never share a unit."""

    key: str
    start: float
    end: float


def fnv1a_32(text: str, state: int = _FNV_OFFSET) -> int:
    """FNV-1a, 32 bits, over UTF-16 code units and not bytes: JavaScript's `charCodeAt` is what the spec was cut from.
    A lone surrogate counts as itself. `state`: the hash of what comes before the text."""
    if text.isascii():
        units: Sequence[int] = text.encode()
    else:
        units = memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H")
    for unit in units:
        state = (state ^ unit) * 0x01000193 & 0xFFFFFFFF
    return state


_state_of_seed = lru_cache(1024)(fnv1a_32)  # a seed comes with every request: a third of the time of an assignment


def hash_unit(seed: str, value: str, version: int) -> float | None:
    """The bucket of `value` in [0, 1): 1,000 buckets in version 1, 10,000 in version 2; None for any other version.

    Version 1 (`fnv(value + seed)`) is biased when two experiments run side by side with similar seeds; version 2 hashes
    twice (`fnv(str(fnv(seed + value)))`) and is not.
    """
    if version == 2:
        return fnv1a_32(str(fnv1a_32(value, _state_of_seed(seed)))) % 10_000 / 10_000
    if version == 1:
        return fnv1a_32(value + seed) % 1_000 / 1_000
    return None


def equal_weights(count: int) -> tuple[float, ...]:
    return (1 / count,) * count if count > 0 else ()


def bucket_ranges(coverage: float, weights: Sequence[float]) -> tuple[Range, ...]:
    """A range a variant: it starts where the weights before it end and is `coverage` of its weight wide, so raising the
    coverage only ever adds units. `coverage` is clamped to [0, 1]; weights that are negative or whose sum is outside
    0.99 to 1.01 are replaced by equal ones."""
    coverage = min(max(coverage, 0.0), 1.0)
    if not 0.99 <= sum(weights) <= 1.01 or min(weights) < 0:
        weights = equal_weights(len(weights))
    ranges: list[Range] = []
    start = 0.0
    for weight in weights:
        ranges.append((start, start + coverage * weight))
        start += weight
    return tuple(ranges)


def choose_variant(n: float, ranges: Sequence[Range]) -> int:
    """The position of the first range that holds bucket `n`; NOT_IN_EXPERIMENT when none does."""
    for position, (start, end) in enumerate(ranges):
        if start <= n < end:
            return position
    return NOT_IN_EXPERIMENT


def in_namespace(unit: str, namespace: tuple[str, float, float]) -> bool:
    """Whether the unit's place in the namespace (hash version 1, seed `__` + key) is in its [start, end)."""
    key, start, end = namespace
    place = hash_unit("__" + key, unit, 1)
    return place is not None and start <= place < end
