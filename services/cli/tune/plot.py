"""One HTML file that needs nothing else: answers in time and p99 over the rate, a line a setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from services.cli.tune.trial import Row, Setting
from shared.errors import ConfigurationError

# Okabe and Ito's, told apart by everybody.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>silkrec tune batch</title>
<script>{script}</script>
<div id="plot" style="height:95vh"></div>
<script>Plotly.newPlot("plot", {traces}, {layout}, {{displayModeBar: false, responsive: true}});</script>
</html>
"""


def write(path: Path, rows: Sequence[Row], slo_ms: float) -> None:
    """Raises ConfigurationError without plotly, OSError."""
    layout = {
        "grid": {"rows": 2, "columns": 1, "pattern": "independent"},
        "xaxis": {"title": {"text": "requests a second"}},
        "yaxis": {"title": {"text": f"whole answers a second within {slo_ms:g} ms"}, "rangemode": "tozero"},
        "xaxis2": {"title": {"text": "requests a second"}},
        "yaxis2": {"title": {"text": "p99, ms"}, "type": "log"},
        "shapes": [
            {"type": "line", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": slo_ms, "y1": slo_ms,
             "line": {"dash": "dot"}}
        ],
    }  # fmt: skip
    settings = dict.fromkeys(row.setting for row in rows)
    traces = [trace for place, setting in enumerate(settings) for trace in _traces(setting, rows, place)]
    # `</` would end the script early.
    told = (json.dumps(value).replace("</", "<\\/") for value in (traces, layout))
    path.write_text(_PAGE.format(script=_plotly(), traces=next(told), layout=next(told)), "utf-8")


def _traces(setting: Setting, rows: Sequence[Row], place: int) -> list[dict[str, Any]]:
    """A setting has one colour in both panels: the legend is the upper one's."""
    own = sorted((row for row in rows if row.setting == setting), key=lambda row: row.rate)
    name = f"batch {setting.max_batch_size}, delay {setting.max_queue_delay_ms:g} ms"
    rates = [row.rate for row in own]
    line = {"color": _COLOURS[place % len(_COLOURS)], "dash": "solid" if place < len(_COLOURS) else "dash"}
    common = {"mode": "lines+markers", "name": name, "legendgroup": name, "x": rates, "line": line}
    late = [None if row.p99_ms != row.p99_ms else round(row.p99_ms, 2) for row in own]  # NaN is no JSON
    return [
        {**common, "y": [round(row.goodput, 1) for row in own]},
        {**common, "y": late, "xaxis": "x2", "yaxis": "y2", "showlegend": False},
    ]


def _plotly() -> str:
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("the package plotly is not installed; ./run setup installs it")
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text("utf-8")
