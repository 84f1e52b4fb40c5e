"""Numbers, money and times for people. The exact ones are in the CSV and the JSON.

Both languages group by comma and point by dot (GB/T 15835 allows it, and finance in China writes it); they differ in
dates. Money carries its code and no sign: ¥ is two currencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.recommender.experiments.report import Bounds

NONE = "–"
MINUS = "−"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def zone(name: str) -> ZoneInfo:
    """UTC for a name that this machine's time zone data lacks; the page shows the zone beside every time."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Formats:
    """Of one page. `language` en or zh; `time_zone` IANA; `currency` ISO 4217."""

    language: str
    time_zone: str = "UTC"
    currency: str = "USD"

    def count(self, number: float | None) -> str:
        return NONE if number is None else _minus(f"{number:,.0f}")

    def number(self, number: float | None, digits: int = 4) -> str:
        """Four significant digits, without an exponent."""
        if number is None:
            return NONE
        if number == 0:
            return "0"
        size = abs(number)
        decimals = max(0, digits - len(f"{size:.0f}")) if size >= 1 else digits - 1 - _exponent(size)
        return _minus(f"{number:,.{min(decimals, 9)}f}")

    def share(self, number: float | None, decimals: int = 2) -> str:
        return NONE if number is None else _minus(f"{number * 100:,.{decimals}f} %")

    def lift(self, number: float | None) -> str:
        """A fraction as signed percent: 0.0312 is +3.12 %."""
        return NONE if number is None else _minus(f"{number * 100:+,.2f} %")

    def probability(self, number: float | None) -> str:
        if number is None:
            return NONE
        return "< 0.0001" if number < 0.0001 else f"{number:.4f}"

    def bounds(self, bounds: Bounds | None) -> str:
        """[−1.20 %, +3.40 %]; an open end is an infinity."""
        if bounds is None:
            return NONE
        low = f"{MINUS}∞" if bounds.low is None else self.lift(bounds.low)
        high = "+∞" if bounds.high is None else self.lift(bounds.high)
        return f"[{low}, {high}]"

    def milliseconds(self, number: float | None) -> str:
        return NONE if number is None else f"{number:,.1f} ms"

    def value(self, number: float | None, unit: str) -> str:
        """In a metric's own unit (`report.MetricResult.unit`); an unknown unit is a plain number."""
        if number is None:
            return NONE
        by_unit: dict[str, Callable[[float], str]] = {
            "share": self.share,
            "ms": self.milliseconds,
            "seconds": lambda seconds: f"{self.number(seconds)} s",
            "currency": lambda money: _minus(f"{money:,.2f}") + f" {self.currency}",
        }
        return by_unit.get(unit, self.number)(number)

    def deviation(self, number: float | None, unit: str) -> str:
        """As `value`; of a share in its own scale, for 21.8 % ± 41 % reads as a lift."""
        return self.number(number) if unit == "share" else self.value(number, unit)

    def day(self, iso: str) -> str:
        try:
            found = date.fromisoformat(iso)
        except ValueError:
            return iso
        return self._date(found)

    def moment(self, at_us: int | None) -> str:
        """To the minute; `zone_name` stands beside it."""
        if at_us is None:
            return NONE
        when = datetime.fromtimestamp(at_us / 1e6, zone(self.time_zone))
        return f"{self._date(when)} {when:%H:%M}"

    @property
    def zone_name(self) -> str:
        return zone(self.time_zone).key

    def machine(self, at_us: int) -> str:
        """For <time datetime>."""
        return datetime.fromtimestamp(at_us / 1e6, zone("UTC")).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _date(self, when: date) -> str:
        if self.language == "zh":
            return f"{when.year}年{when.month}月{when.day}日"
        return f"{when.day} {_MONTHS[when.month - 1]} {when.year}"


def _exponent(size: float) -> int:
    return int(f"{size:e}".partition("e")[2])


def _minus(text: str) -> str:
    """A true minus, as wide as a digit, that screen readers read; never -0."""
    if text.startswith("-"):
        text = text[1:] if not any(digit in text for digit in "123456789") else MINUS + text[1:]
    return text
