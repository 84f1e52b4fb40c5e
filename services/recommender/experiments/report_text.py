"""A report as JSON content and as CSV rows: every number of the page. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from services.recommender.experiments.report import Bounds, Cell, Report

COLUMNS = ("table", "name", "variant", "day", "quantity", "value", "low", "high")
Line = tuple[str, str, str, str, str, Any, Any, Any]
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")


def as_dict(report: Report) -> dict[str, Any]:
    """Plain containers, strings and numbers. `reasons` become {"code", "facts"}."""
    content = asdict(report)
    reasons = [{"code": code, "facts": dict(facts)} for code, facts in report.conclusion.reasons]
    content["conclusion"]["reasons"] = reasons
    return content


def as_csv(report: Report) -> str:
    """Long: one quantity a line, with its interval where it has one. An empty field is an unknown number. Text that a
    spreadsheet would take for a formula gets an apostrophe before it: variant and segment names come from users."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([_safe(field) for field in line] for line in rows(report))
    return out.getvalue()


def rows(report: Report) -> Iterator[Line]:
    yield from _head(report)
    for one in report.variants:
        for quantity in ("units", "share", "expected_share"):
            yield _line("variant", "", one.variant, quantity, getattr(one, quantity))
    for metric in report.metrics:
        for cell in metric.cells:
            yield from _cell("metric", metric.metric, cell)
    yield from _quality(report)
    yield from _days(report)
    for segment in report.segments:
        for cell in segment.cells:
            yield from _cell("segment", segment.name, cell)


def _head(report: Report) -> Iterator[Line]:
    conclusion = report.conclusion
    yield _line("experiment", report.experiment, quantity="phase", value=report.phase)
    yield _line("experiment", report.experiment, quantity="as_of_us", value=report.as_of_us)
    yield _line("experiment", report.experiment, quantity="simulated", value=int(report.simulated))
    yield _line("experiment", report.experiment, quantity="excluded_units", value=report.excluded_units)
    yield _line("conclusion", conclusion.decision, conclusion.variant or "", "days_left", conclusion.days_left)
    for code, facts in conclusion.reasons:
        for fact, value in facts.items() or [("", None)]:
            yield _line("reason", code, quantity=fact, value=value)
    for alarm in report.alarms:
        for fact, value in alarm.facts.items():
            yield _line("alarm", alarm.code, quantity=fact, value=value)


def _quality(report: Report) -> Iterator[Line]:
    for quality in report.quality:
        for quantity, value in asdict(quality).items():
            if quantity not in ("variant", "latency_lifts"):
                yield _line("quality", "", quality.variant, quantity, value)
        for one in quality.latency_lifts:
            yield ("quality", one.quantile, quality.variant, "", "latency_lift", one.lift, *_ends(one.fixed))


def _days(report: Report) -> Iterator[Line]:
    for count in report.exposures_by_day:
        yield ("exposures", "", count.variant, count.day, "units", count.units, None, None)
    for point in report.lift_by_day:
        for quantity, interval in (("lift", point.fixed), ("lift_sequential", point.sequential)):
            yield ("lift", "", point.variant, point.day, quantity, point.lift, *_ends(interval))


def _cell(table: str, name: str, cell: Cell) -> Iterator[Line]:
    for quantity in ("units", "value", "standard_deviation", "difference", "p_value", "p_adjusted", "chance_to_win"):
        yield _line(table, name, cell.variant, quantity, getattr(cell, quantity))
    yield (table, name, cell.variant, "", "lift", cell.lift, *_ends(cell.fixed))
    yield (table, name, cell.variant, "", "lift_sequential", cell.lift, *_ends(cell.sequential))
    yield _line(table, name, cell.variant, "verdict", cell.verdict)
    if cell.problem:
        yield _line(table, name, cell.variant, "problem", cell.problem)


def _line(table: str, name: str, variant: str = "", quantity: str = "", value: Any = None) -> Line:
    return (table, name, variant, "", quantity, value, None, None)


def _ends(interval: Bounds | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _safe(field: Any) -> Any:
    return f"'{field}" if isinstance(field, str) and field.startswith(_DANGEROUS) else field
