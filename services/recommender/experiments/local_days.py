"""Days of an experiment's time zone, as numbers: days since 1970 there. With summer time a day has 23 or 25 hours."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.recommender.experiments.refusals import refuse

_EPOCH = date(1970, 1, 1)


def zone_of(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise refuse("time_zone", f"is {name!r}; give an IANA name such as Europe/Berlin") from error


def day_of(at_us: int, zone: ZoneInfo) -> int:
    return (datetime.fromtimestamp(at_us // 1_000_000, UTC).astimezone(zone).date() - _EPOCH).days


def start_us(day: int, zone: ZoneInfo) -> int:
    """Midnight there, in microseconds UTC; the day ends where the next one starts."""
    midnight = datetime.combine(_EPOCH + timedelta(days=day), time(), zone)
    return round(midnight.timestamp()) * 1_000_000


def iso(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()
