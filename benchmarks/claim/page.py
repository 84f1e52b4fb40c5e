"""The claim as one HTML page: no script, no request, readable as a table."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>SilkRec: baseline and full pipeline</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding: .5rem 0; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
td { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; }
.wide { overflow-x: auto; } .simulated { border: 2px solid; padding: .5rem 1rem; }
</style></head><body>"""

COLUMNS = (
    ("way", "Way to the slate", "{}"),
    ("p50_ms", "p50 ms", "{:.1f}"),
    ("p95_ms", "p95 ms", "{:.1f}"),
    ("p99_ms", "p99 ms", "{:.1f}"),
    ("over_deadline", "Later than 68 ms", "{:.1%}"),
    ("ild_at_10", "ILD@10", "{:.3f}"),
    ("expected_ctr", "CTR by the click model", "{:.4f}"),
    ("lift", "Lift over the baseline", "{}"),
)


def cells(row: Mapping[str, Any]) -> list[str]:
    return [template.format(row[name]) for name, _, template in COLUMNS]


def page(result: Mapping[str, Any]) -> str:
    """`result`: what `--json` writes."""
    rows, workload, machine = result["rows"], result["workload"], result["machine"]
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for _, title, _ in COLUMNS)
    lines = []
    for row in rows:
        first, *others = (html.escape(cell) for cell in cells(row))
        values = "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{first}</th>{values}</tr>')
    facts = html.escape(", ".join(f"{name} {value}" for name, value in {**workload, **machine}.items()))
    hit, popular = (result["measured"][f"held_out_{name}"] for name in ("hr_at_10", "popular_hr_at_10"))
    held_out = f"{hit:.3f} by the ranker, {popular:.3f} by popularity" if hit and popular else "not measured"
    return f"""{_HEAD}
<h1>Popularity and item-to-item, against the full pipeline</h1>
<p class="simulated" role="note"><strong>Simulated clicks.</strong> No real user clicked: the click-through rate is the
exact expectation of a click model (position, taste by genre, how good a film is, tiredness of what looks alike) over
slates that the running suite served. It compares slates; it does not foretell what people would do.</p>
<div class="wide"><table><caption>{html.escape(str(workload["users"]))} users of MovieLens-100K, slates of 10.</caption>
<thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
<p>ILD@10: 1 minus the mean Jaccard likeness of the genres of all pairs in the slate. Latency as the client saw it, one
user at a time; the baseline's four lists are asked for together. Lift: mean over the same users, with its 95 %
interval.</p>
<p>What real ratings say, without any click model: each user's last rating, held out of training, is among the first ten
of all films (HR@10) {held_out}.</p>
<p><small>{facts}. MovieLens-100K: GroupLens, University of Minnesota.</small></p>
</body></html>
"""
