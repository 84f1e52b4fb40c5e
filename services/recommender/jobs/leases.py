"""The rules of a lease, without a database or a clock of their own.

A chunk is `waiting` until somebody leases it, `leased` until its time runs out or a commit ends it. Each lease raises
the fencing token, and each write names the token under which it was made: who lost a lease can change nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.errors import Conflict

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
# A dependency that is away is nobody's fault, is not counted, and is asked again about so often.
DEPENDENCY_WAIT_S = 2.0
REASON_MAX = 1000


class LeaseLost(Conflict):
    """Somebody else has the chunk, or the job was cancelled: what was computed is thrown away."""

    code = "lease_lost"
    title = "The lease of a chunk was lost"


class ChunkState(StrEnum):
    WAITING = "waiting"
    LEASED = "leased"
    DONE = "done"
    PARKED = "parked"
    CANCELLED = "cancelled"


OPEN = (ChunkState.WAITING.value, ChunkState.LEASED.value)


class ChunkKind(StrEnum):
    PLAN = "plan"
    WORK = "work"
    PUBLISH = "publish"


PLAN_CHUNK, PUBLISH_CHUNK = 0, -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a chunk whose attempt failed: when it is tried again, or that it is parked."""

    state: ChunkState
    wait_s: float = 0.0


def after_failure(attempts: int, max_attempts: int) -> Verdict:
    """`attempts` includes the one that failed."""
    if attempts >= max_attempts:
        return Verdict(ChunkState.PARKED)
    return Verdict(ChunkState.WAITING, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempts - 1)))


def may_lease(state: str, due_at_us: int, now_us: int) -> bool:
    return state in OPEN and due_at_us <= now_us


def renew_every_s(lease_s: float) -> float:
    """Two renewals may be lost before the lease is."""
    return lease_s / 3
