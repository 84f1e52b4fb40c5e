"""Times of the API: RFC 3339 with its offset outside, microseconds since 1970 UTC inside, exact in both directions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_US = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // _MICROSECOND
TIME_RULE = "an RFC 3339 time with its offset, such as 2026-01-31T12:00:00Z"


def parse_time(text: str) -> int | None:
    """None for what is no such time, and for one that falls out of the years 1 to 9999 in UTC."""
    if _RFC_3339.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    time_us = (moment - _EPOCH) // _MICROSECOND
    return time_us if _FIRST_US <= time_us <= _LAST_US else None


def format_time(time_us: int) -> str:
    moment = _EPOCH + timedelta(microseconds=time_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
