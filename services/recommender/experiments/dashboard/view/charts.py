"""What dashboard.js draws, as JSON: the Report's own numbers, lifts in percent, and the words of the axes.

An open end of an interval is None, and is drawn to the edge.
"""

from __future__ import annotations

from typing import Any

from services.recommender.experiments.dashboard.view.results import ResultsView
from services.recommender.experiments.report import Bounds


def charts(view: ResultsView) -> dict[str, Any]:
    """{forest, lift, exposures}; one without data is None, and then no figure is shown."""
    return {"forest": _forest(view), "lift": _lift(view), "exposures": _exposures(view)}


def _common(view: ResultsView, kind: str) -> dict[str, Any]:
    """`variants`: all of them, so that each has one colour and one marker in every chart of the page."""
    words = {name: view.t(f"chart.{name}") for name in ("lift_axis", "units_axis")}
    return {"kind": kind, "words": words, "variants": [variant.variant for variant in view.report.variants]}


def _forest(view: ResultsView) -> dict[str, Any] | None:
    rows = [
        {
            "metric": view.title(metric),
            "variant": cell.variant,
            "lift": _percent(cell.lift),
            "fixed": _pair(cell.fixed),
            "sequential": _pair(cell.sequential),
        }
        for metric in view.report.metrics
        for cell in metric.cells
        if cell.lift is not None
    ]
    return {**_common(view, "forest"), "rows": rows} if rows else None


def _lift(view: ResultsView) -> dict[str, Any] | None:
    series: dict[str, list[dict[str, Any]]] = {}
    for point in view.report.lift_by_day:
        row = {
            "day": point.day,
            "lift": _percent(point.lift),
            "fixed": _pair(point.fixed),
            "sequential": _pair(point.sequential),
        }
        series.setdefault(point.variant, []).append(row)
    return {**_common(view, "lift"), "series": series} if series else None


def _exposures(view: ResultsView) -> dict[str, Any] | None:
    series: dict[str, list[dict[str, Any]]] = {}
    for count in view.report.exposures_by_day:
        series.setdefault(count.variant, []).append({"day": count.day, "units": count.units})
    return {**_common(view, "exposures"), "series": series} if series else None


def _pair(bounds: Bounds | None) -> list[float | None]:
    return [None, None] if bounds is None else [_percent(bounds.low), _percent(bounds.high)]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else fraction * 100
