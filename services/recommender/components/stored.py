"""What stands in Redis for a user besides history and profile: last good scores, and slates computed in batch.

Both are little-endian and begin with a version byte; another version, a wrong length or no bytes at all are a miss.

    last good   <B version> <B actions A> <H items n> <q made at, s> | item int32 [n] | probability float16 [n, A]
    batch slate <B version> <B 0>         <H items n> <q made at, s> | item int32 [n] | score float32 [n], best first
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from shared.contracts.history import Float32, Int32

VERSION = 1
MAX_ITEMS = 0xFFFF
_HEAD = struct.Struct("<BBHq")


def last_good_key(release: str, user_key: str) -> str:
    return f"silkrec:lg1:{release}:{user_key}"


def batch_slate_key(release: str, scene: str, user_key: str) -> str:
    return f"silkrec:b1:{release}:{scene}:{user_key}"


def parse_batch_slate_key(key: str) -> tuple[str, str, str] | None:
    """(release, scene, user_key); None for another key. Releases and scenes hold no colon, ids may."""
    parts = key.split(":", 4)
    return (parts[2], parts[3], parts[4]) if len(parts) == 5 and parts[:2] == ["silkrec", "b1"] else None


@dataclass(frozen=True, slots=True)
class LastGood:
    """`item_index [n]`, `scores [n, A]` probabilities in the order of the release's actions."""

    item_index: Int32
    scores: Float32
    made_at_s: int


@dataclass(frozen=True, slots=True)
class BatchSlate:
    """`item_index [n]`, best first; `score [n]`."""

    item_index: Int32
    score: Float32
    made_at_s: int


def pack_last_good(value: LastGood) -> bytes:
    """float16 keeps three digits of a probability, enough for an order, in half the bytes: 256 items x 11 actions are
    6.7 KB. Raises ValueError for shapes that do not belong together or are too long."""
    count, actions = value.scores.shape
    _check(value.item_index, count)
    if actions > 0xFF:
        raise ValueError(f"at most 255 actions, got {actions}")
    head = _HEAD.pack(VERSION, actions, count, value.made_at_s)
    return head + value.item_index.astype("<i4").tobytes() + value.scores.astype("<f2").tobytes()


def unpack_last_good(blob: bytes | None) -> LastGood | None:
    head = _head(blob)
    if blob is None or head is None:
        return None
    actions, count, made_at_s = head
    if len(blob) != _HEAD.size + count * (4 + 2 * actions):
        return None
    items = np.frombuffer(blob, "<i4", count, _HEAD.size)
    scores = np.frombuffer(blob, "<f2", count * actions, _HEAD.size + 4 * count).reshape(count, actions)
    return LastGood(items.astype(np.int32), scores.astype(np.float32), made_at_s)


def pack_batch_slate(value: BatchSlate) -> bytes:
    """Raises ValueError for shapes that do not belong together or are too long."""
    count = len(value.score)
    _check(value.item_index, count)
    head = _HEAD.pack(VERSION, 0, count, value.made_at_s)
    return head + value.item_index.astype("<i4").tobytes() + value.score.astype("<f4").tobytes()


def unpack_batch_slate(blob: bytes | None) -> BatchSlate | None:
    head = _head(blob)
    if blob is None or head is None:
        return None
    _, count, made_at_s = head
    if len(blob) != _HEAD.size + 8 * count:
        return None
    items = np.frombuffer(blob, "<i4", count, _HEAD.size)
    score = np.frombuffer(blob, "<f4", count, _HEAD.size + 4 * count)
    return BatchSlate(items.astype(np.int32), score.astype(np.float32), made_at_s)


def _head(blob: bytes | None) -> tuple[int, int, int] | None:
    """(actions, items, made_at_s)."""
    if blob is None or len(blob) < _HEAD.size:
        return None
    version, actions, count, made_at_s = _HEAD.unpack_from(blob)
    return (actions, count, made_at_s) if version == VERSION else None


def _check(item_index: Int32, count: int) -> None:
    if len(item_index) != count or count > MAX_ITEMS:
        raise ValueError(f"{len(item_index)} items and {count} rows of scores; equal, and at most {MAX_ITEMS}")
