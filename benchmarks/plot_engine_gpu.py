"""The plot beside `results/engine_gpu.json`.

    python -m benchmarks.plot_engine_gpu [results/engine_gpu.json]

A panel a shape: requests a second by batch size, with the history's state held (`cached`) and without (`cold`), ours
and transformers'. A hollow point: the p99 of that batch is beyond the deadline of 68 ms, so it does not count.
The last panel: latency through the whole engine by batch size. Writes `.svg` beside the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DEADLINE_MS = 68
SHAPES = ("s", "m", "lite")
_STYLE = {
    ("silkrec", "cached"): ("#0b7285", "-"),
    ("silkrec", "cold"): ("#0b7285", "--"),
    ("transformers", "cached"): ("#c2410c", "-"),
    ("transformers", "cold"): ("#c2410c", "--"),
}


def draw(result: dict[str, Any]) -> Figure:
    # Ids of an SVG are random by default: a plot that did not change must not look changed.
    mpl.rcParams.update(
        {"svg.hashsalt": "silkrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for shape, panel in zip(SHAPES, axes.flat, strict=False):
        _shape(panel, shape, result["rows"])
    _engine(axes[1][1], [row for row in result["rows"] if row["who"] == "silkrec engine"])
    figure.suptitle(
        f"Scoring on one {result['machine']['gpu']}: host tensors in, host scores out; hollow: p99 beyond 68 ms"
    )
    return figure


def _shape(panel: Axes, shape: str, rows: Sequence[dict[str, Any]]) -> None:
    for (who, kind), (colour, line) in _STYLE.items():
        found = [row for row in rows if (row["shape"], row["who"], row["kind"]) == (shape, who, kind)]
        found.sort(key=lambda row: int(row["batch"]))
        batches, rates = [row["batch"] for row in found], [row["requests_per_s"] for row in found]
        panel.plot(batches, rates, color=colour, linestyle=line, label=f"{who}, {kind}")
        faces = [colour if row["p99_ms"] <= DEADLINE_MS else "white" for row in found]
        panel.scatter(batches, rates, s=24, c=faces, edgecolors=colour, zorder=3)
        _ticks(panel, batches)
    panel.set(title=f"shape {shape}", yscale="log", xlabel="requests a batch", ylabel="requests/s")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.yaxis.set_minor_formatter("{x:,.0f}")
    panel.tick_params(axis="y", which="both", labelsize=7)
    panel.grid(visible=True, alpha=0.25)
    panel.legend(frameon=False, fontsize=8)


def _ticks(panel: Axes, batches: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(batches, [str(batch) for batch in batches])
    panel.minorticks_off()


def _engine(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: int(row["batch"]))
    for name, line in (("p50_ms", "-"), ("p99_ms", "--")):
        panel.plot(
            [row["batch"] for row in rows],
            [row[name] for row in rows],
            "o",
            linestyle=line,
            color="#0b7285",
            label=name[:3],
        )
    panel.axhline(DEADLINE_MS, color="#555", linewidth=0.8, linestyle=":")
    panel.set(title="shape m through the whole engine", xlabel="requests at once", ylabel="latency, ms")
    _ticks(panel, [row["batch"] for row in rows])
    panel.grid(visible=True, alpha=0.25)
    panel.legend(frameon=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="?", default=Path(__file__).parent / "results" / "engine_gpu.json")
    path = parser.parse_args(arguments).json
    target = path.with_suffix(".svg")
    draw(json.loads(path.read_text())).savefig(target, metadata={"Date": None})
    print(target)


if __name__ == "__main__":
    main()
