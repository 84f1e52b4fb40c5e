"""Names and fields of the Redis values. The digit is the format's version: a reader of another version sees a miss."""

from __future__ import annotations

REVISION = b"rev"
"""Decimal text: `user_state.revision` as of these rows."""
ROWS = b"rows"
"""`shared.contracts.history` rows, oldest first."""
LAST_EVENT_ID = b"last"
OCCURRED = b"at"
"""Decimal text: occurred_at of the newest row, microseconds; for writers, which must know what is out of order."""

SYNC_LEASE = "silkrec:sync1"
"""Present: no user has been dirty in MySQL for longer than a sweep, so a history in Redis is current. Its owner is the
sweeper, its TTL two seconds; absent, readers compare revisions with MySQL (infra/decisions/0004)."""
PROFILE_TTL_S = 30 * 86400


def history_key(user_key: str) -> str:
    """A hash of REVISION, ROWS, LAST_EVENT_ID and OCCURRED; TTL `features.history.ttl_s`."""
    return f"silkrec:h1:{user_key}"


def profile_key(user_key: str) -> str:
    """JSON `{"properties": {…}, "segments": […]}`; TTL PROFILE_TTL_S."""
    return f"silkrec:p1:{user_key}"
