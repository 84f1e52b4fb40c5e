"""Frozen slates: what a cursor continues. The rest of a slate waits in Redis; the cursor itself carries what was shown.

    silkrec:fs1:{user_key}   hash of SLOTS fields, each {slate_id, until, JSON columns}; TTL 30 min after the last

The key holds the user, so nobody's cursor opens another's slate, and deleting a user is one DEL. A slate takes the slot
that its random id names, so a user who opens slates all day keeps at most SLOTS. When Redis lost it, or another slate
took its slot, the next page is a fresh slate without what the cursor says was shown: no repeats either way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from redis.asyncio import Redis

from services.recommender.domain import Rung, Slate, SlateItems
from shared.contracts.history import Int32
from shared.errors import FieldError, ValidationFailed
from shared.storage.redis import RedisFailure

FROZEN_TTL_S = 30 * 60
MAX_SHOWN = 500
SLOTS = 32
_VERSION = b"\x01"
_ID_BYTES = 8
# Both or neither, in one reply: nearly every request writes one, and MULTI … EXEC has four to parse (0.2 ms).
_KEEP = "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) return redis.call('EXPIRE', KEYS[1], ARGV[3])"


@dataclass(frozen=True, slots=True)
class Cursor:
    """`shown`: int32 item_index of all pages so far."""

    slate_id: str
    shown: Int32

    def encode(self) -> str:
        body = _VERSION + bytes.fromhex(self.slate_id) + self.shown.astype("<i4").tobytes()
        return base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "little") + body).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Raises ValidationFailed at /cursor."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _bad() from None
        crc, body = raw[:4], raw[4:]
        rows = body[1 + _ID_BYTES :]
        if body[:1] != _VERSION or zlib.crc32(body).to_bytes(4, "little") != crc or len(rows) % 4:
            raise _bad()
        if len(rows) > 4 * MAX_SHOWN:
            raise _bad()
        return cls(body[1 : 1 + _ID_BYTES].hex(), np.frombuffer(rows, "<i4").astype(np.int32))


def new_slate_id() -> str:
    return secrets.token_hex(_ID_BYTES)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The rest of a slate, and what it was asked for: a page that asks for something else gets a fresh slate."""

    asked: str
    slate: Slate


class FrozenSlates:
    """`read` is the client for the request path (20 ms), `write` the one behind it."""

    def __init__(self, read: Redis, write: Redis, *, now_s: Callable[[], float] = time.time) -> None:
        self._read = read
        self._write = write
        self._now_s = now_s

    async def keep(self, user_key: str, slate_id: str, frozen: Frozen) -> None:
        """A cache write: when Redis is away, the next page is a fresh slate."""
        blob = _pack(frozen, slate_id, self._now_s() + FROZEN_TTL_S)
        key = frozen_key(user_key)
        try:
            kept: Any = self._write.eval(_KEEP, 1, key, _slot(slate_id), blob, FROZEN_TTL_S)
            await kept
        except RedisFailure:
            return

    async def find(self, user_key: str, cursor: Cursor, timeout_s: float) -> tuple[Frozen | None, str]:
        """The frozen rest, or None and why: `expired`, `redis_unavailable`."""
        try:
            async with asyncio.timeout(timeout_s):
                found: Any = self._read.hget(frozen_key(user_key), _slot(cursor.slate_id))
                blob = await found
        except RedisFailure:
            return None, "redis_unavailable"
        frozen = _unpack(blob, cursor.slate_id, self._now_s()) if isinstance(blob, bytes) else None
        return frozen, "" if frozen is not None else "expired"


def cut(slate: Slate, begin: int, end: int | None = None) -> Slate:
    """The slate with the items of these positions only."""
    return choose(slate, np.arange(len(slate.items))[begin:end])


def choose(slate: Slate, positions: npt.NDArray[np.intp]) -> Slate:
    """The slate with the items at `positions`, in that order."""
    items = slate.items
    return replace(
        slate,
        items=replace(
            items,
            item_index=items.item_index[positions],
            score=items.score[positions],
            scores=items.scores[positions],
            source_bits=items.source_bits[positions],
            propensity=items.propensity[positions],
            reasons=tuple(items.reasons[int(place)] for place in positions),
        ),
    )


def frozen_key(user_key: str) -> str:
    return f"silkrec:fs1:{user_key}"


def _slot(slate_id: str) -> str:
    return str(int(slate_id, 16) % SLOTS)


_COLUMNS: Mapping[str, Any] = {
    "item_index": np.int32,
    "score": np.float32,
    "scores": np.float32,
    "source_bits": np.int64,
    "propensity": np.float64,
}
_KEPT = ("release", "model_version", "index_version", "last_event_id")


def _pack(frozen: Frozen, slate_id: str, until_s: float) -> bytes:
    items = frozen.slate.items
    body: dict[str, Any] = {name: np.ascontiguousarray(getattr(items, name)) for name in _COLUMNS}
    body |= {"reasons": items.reasons, "actions": items.actions, "sources": items.sources, "asked": frozen.asked}
    body |= {
        "slate_id": slate_id,
        "until": until_s,
        "rung": frozen.slate.rung,
        "kept": [getattr(frozen.slate, name) for name in _KEPT],
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _unpack(blob: bytes, slate_id: str, now_s: float) -> Frozen | None:
    """None for another slate, one whose time is over, and what another format wrote."""
    try:
        body = orjson.loads(blob)
        if body["slate_id"] != slate_id or body["until"] < now_s:
            return None
        count, actions = len(body["item_index"]), tuple(body["actions"])
        columns = {name: np.array(body[name], kind) for name, kind in _COLUMNS.items()}
        columns["scores"] = columns["scores"].reshape(count, len(actions))
        reasons = tuple(tuple(row) for row in body["reasons"])
        items = SlateItems(**columns, reasons=reasons, actions=actions, sources=tuple(body["sources"]))
        kept = dict(zip(_KEPT, body["kept"], strict=True))
        return Frozen(
            body["asked"],
            Slate(items=items, rung=Rung(body["rung"]), stage_ms={}, degraded=(), filtered={}, **kept),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _bad() -> ValidationFailed:
    message = "this is no cursor of ours; send next_cursor as it was answered, or leave it out for a fresh slate"
    return ValidationFailed(message, errors=[FieldError("/cursor", message, "bad_cursor")])
