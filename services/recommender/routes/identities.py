"""What a slate is called, and its draw. A request that a proxy tries again elsewhere is one request: one name, one
draw.

nginx (infra/nginx) sends `X-Request-Id` and `X-Request-Start: t=<seconds since 1970>` and, as it builds a request once,
both stay as they were when it goes to the next server. Two attempts that both got as far as a journal then carry the
same recommendation_id, which the database keeps once, and the same seed, so that one state explores the same items.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request

from shared.observability import context

REQUEST_START_HEADER = "x-request-start"
# Clocks of two hosts may differ; a header from much longer ago is no retry, and must not date a slate.
BELIEVED_MS = 60_000
_START = re.compile(r"t=(\d{10})\.(\d{3})\Z")
_SEED_BITS = 63


class Identity(NamedTuple):
    """`recommendation_id`: 32 hex digits that begin with the time, so that new rows go to the end of the primary
    key."""

    recommendation_id: str
    seed: int


def fresh(now_us: int) -> Identity:
    return Identity(f"{now_us // 1000:012x}{secrets.token_hex(10)}", secrets.randbits(_SEED_BITS))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One of possibly several attempts at the same request. `digest` [32 bytes] of all that names it."""

    started_ms: int
    digest: bytes

    def identity(self, place: int) -> Identity:
        """`place`: of the shelf in its page. The body counts: front ends give all calls of a page one request id."""
        drawn = hashlib.blake2b(self.digest + place.to_bytes(2, "big"), digest_size=18).digest()
        seed = int.from_bytes(drawn[10:], "big") >> (64 - _SEED_BITS)
        return Identity(f"{self.started_ms:012x}{drawn[:10].hex()}", seed)


def started_ms(header: str | None) -> int | None:
    """Milliseconds since 1970, by the clock of the proxy that wrote the header."""
    match = None if header is None else _START.match(header)
    return None if match is None else int(match[1]) * 1000 + int(match[2])


async def attempt_of(request: Request, now_us: int) -> Attempt | None:
    """None where no proxy says when the request first arrived: then every request is one of its own."""
    began_ms = started_ms(request.headers.get(REQUEST_START_HEADER))
    request_id = context.current_request_id()
    if began_ms is None or request_id is None:
        return None
    if abs(now_us // 1000 - began_ms) > BELIEVED_MS:
        return None
    digest = hashlib.blake2b(f"{request_id}\n{began_ms}\n{request.url.path}\n".encode(), digest_size=32)
    digest.update(await request.body())
    return Attempt(began_ms, digest.digest())
