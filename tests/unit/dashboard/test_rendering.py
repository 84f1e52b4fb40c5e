"""What the pages say: every number of a Report, and no verdict while an alarm blocks."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from services.recommender.experiments.dashboard.formats import Formats
from services.recommender.experiments.definitions import Experiment, Variant
from services.recommender.experiments.report import Bounds, Cell, Decision, Report
from tests import dashboard_example as example
from tests.asgi import running
from tests.dashboard_app import FakePort, application

HOSTILE = "<script>alert('x')</script>\"'&{{7*7}}</script><!--"


class Tables(HTMLParser):
    """The text inside tables."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.depth += tag == "table"
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "table"

    def handle_data(self, data: str) -> None:
        if self.depth and self.cells:
            self.cells[-1] += data


def get(path: str, port: FakePort | None = None, headers: dict[str, str] | None = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with running(application(port or FakePort()), base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def in_tables(html: str) -> list[str]:
    parser = Tables()
    parser.feed(html)
    return [" ".join(cell.split()) for cell in parser.cells]


def written(cell: Cell, unit: str, f: Formats) -> list[str]:
    numbers = [f.count(cell.units), f.value(cell.value, unit), f.deviation(cell.standard_deviation, unit)]
    if cell.lift is None:
        return numbers
    return [
        *numbers,
        f.lift(cell.lift),
        f.value(cell.difference, unit),
        f.bounds(cell.fixed),
        f.bounds(cell.sequential),
        f.probability(cell.p_value),
        f.probability(cell.p_adjusted),
        f.share(cell.chance_to_win, 1),
    ]


def numbers_of(report: Report, f: Formats) -> list[str]:
    found = [number for metric in report.metrics for cell in metric.cells for number in written(cell, metric.unit, f)]
    found += [number for part in report.segments for cell in part.cells for number in written(cell, "share", f)]
    for variant in report.variants:
        found += [f.count(variant.units), f.share(variant.share), f.share(variant.expected_share)]
    for point in report.lift_by_day:
        found += [f.day(point.day), f.lift(point.lift), f.bounds(point.fixed), f.bounds(point.sequential)]
    for day in report.exposures_by_day:
        found += [f.day(day.day), f.count(day.units)]
    for one in report.quality:
        found += [f.count(one.requests), *map(f.milliseconds, (one.p50_ms, one.p95_ms, one.p99_ms))]
        found += map(f.share, (one.error_rate, one.fallback_rate, one.degraded_rate, one.empty_rate))
        found += [f.number(one.ild), f.number(one.novelty)]
        found += [text for lift in one.latency_lifts if lift.lift for text in (f.lift(lift.lift), f.bounds(lift.fixed))]
    return [*found, f.count(report.excluded_units)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_number_of_the_report_stands_in_a_table(language: str) -> None:
    cells = in_tables(get(f"/dashboard/experiments/diverse-home?lang={language}").text)
    formats = Formats(language, "Asia/Shanghai", "CNY")
    assert [number for number in numbers_of(example.report(), formats) if number not in cells] == []


def test_charts_carry_the_reports_own_numbers_and_no_script_is_inline() -> None:
    html = get("/dashboard/experiments/diverse-home").text
    assert "4.87" in html.partition('id="forest-data">')[2].partition("</script>")[0]
    kinds = re.findall(r"<script([^>]*)>", html)
    assert all("src=" in kind or 'type="application/json"' in kind for kind in kinds)
    assert len(kinds) == 5
    assert " style=" not in html
    assert " onclick=" not in html


def test_while_an_alarm_blocks_no_verdict_is_on_the_page_nor_in_the_files() -> None:
    html = get("/dashboard/experiments/new-ranker").text
    assert "Sample-ratio mismatch" in html
    assert "&lt; 0.0001" in html
    assert "No verdict" in html
    for word in ("Ship diverse", "✓", "</span> better</span>", "</span> passed</span>", "The primary metric is better"):
        assert word not in html
    body = get("/dashboard/experiments/new-ranker/results.json").json()
    assert body["conclusion"]["decision"] == "blocked"
    assert body["conclusion"]["variant"] is None
    assert {cell["verdict"] for metric in body["metrics"] for cell in metric["cells"]} == {None}
    text = get("/dashboard/experiments/new-ranker/results.csv").text
    assert "better" not in text.replace("higher_is_better", "").replace("primary_better", "")
    assert "checked" not in get("/dashboard/experiments/new-ranker/ship").text


def test_a_decision_of_blocked_hides_verdicts_even_without_an_alarm() -> None:
    port = FakePort()
    made = example.report()
    port.reports["diverse-home"] = replace(made, conclusion=replace(made.conclusion, decision=Decision.BLOCKED))
    assert "withheld" in get("/dashboard/experiments/diverse-home", port).text


def test_the_decision_is_in_plain_words_with_its_reasons() -> None:
    html = get("/dashboard/experiments/diverse-home").text
    assert "Ship diverse: it is better than the control by more than chance explains" in html
    assert "+4.87 %" in html


def test_simulated_traffic_is_named_on_every_page_it_fed() -> None:
    port = FakePort()
    port.users["ann"] = replace(port.users["ann"], simulated=True)
    for path in ("", "/experiments/new-ranker", "/experiments/new-ranker/ship", "/users/ann"):
        assert "Simulated traffic" in get(f"/dashboard{path}", port).text
        assert "模拟流量" in get(f"/dashboard{path}?lang=zh", port).text
    assert "Simulated traffic" not in get("/dashboard/experiments/diverse-home", port).text


def test_an_experiment_without_data_has_a_page() -> None:
    assert "There is no data yet" in get("/dashboard/experiments/longer-slates").text


def test_an_experiment_that_waits_for_a_release_says_so() -> None:
    port = FakePort()
    port.waits["diverse-home"] = "m-2 is open and waits for inference"
    html = get("/dashboard/experiments/diverse-home", port).text
    assert "nobody meets this experiment here" in html
    assert "m-2 is open and waits for inference" in html
    assert "nobody meets this experiment here" not in get("/dashboard/experiments/new-ranker", port).text


def test_hostile_names_are_text_everywhere() -> None:
    port = FakePort()
    definition = Experiment(
        key="hostile",
        variants=(Variant(HOSTILE, 0.5), Variant("=cmd()", 0.5, {"note": HOSTILE})),
        status=port.experiments["diverse-home"].definition.status,
    )
    registered = replace(port.experiments["diverse-home"], definition=definition, owner=HOSTILE, hypothesis=HOSTILE)
    made = example.report("hostile")
    metrics = tuple(
        replace(metric, metric="own", title=HOSTILE, cells=tuple(replace(c, variant=HOSTILE) for c in metric.cells))
        for metric in made.metrics
    )
    port.experiments["hostile"], port.reports["hostile"] = registered, replace(made, metrics=metrics)
    port.users["ann"] = replace(port.users["ann"], scene=HOSTILE, source_counts={HOSTILE: 1})
    for path in ("", "/experiments/hostile", "/experiments/hostile/ship", "/users/ann", f"/users/{HOSTILE[:8]}"):
        html = get(f"/dashboard{path}", port).text
        assert "<script>alert" not in html
        assert "49" not in re.findall(r"&lt;script.*?7\*7|49\}\}", html)
        assert html.count("<script") == html.count("</script>")


def test_a_cell_of_a_csv_is_never_a_formula() -> None:
    port = FakePort()
    port.experiments["diverse-home"] = replace(port.experiments["diverse-home"], owner="=HYPERLINK(1)")
    rows = list(csv.DictReader(io.StringIO(get("/dashboard/experiments.csv", port).text.lstrip("﻿"))))
    assert rows[0]["owner"] == "'=HYPERLINK(1)"


def test_the_csv_has_every_leaf_of_the_json() -> None:
    text = get("/dashboard/experiments/diverse-home/results.csv").text
    rows = {row["where"]: row["value"] for row in csv.DictReader(io.StringIO(text.lstrip("﻿")))}
    assert float(rows["metrics/ctr/cells/diverse/fixed/low"]) == pytest.approx(0.0266)
    assert rows["excluded_units"] == "37"
    assert rows["quality/control/p95_ms"] == "51.62"


def test_errors_are_pages_here_and_problems_elsewhere() -> None:
    missing = get("/dashboard/experiments/nowhere")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing here" in missing.text
    assert get("/dashboard/what/ever").status_code == 404
    assert get("/v1/experiments/nowhere").headers["content-type"] == "application/problem+json"


def test_every_page_has_the_strict_headers() -> None:
    for path in ("", "/experiments/diverse-home", "/nowhere", "/experiments.json"):
        headers = get(f"/dashboard{path}").headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"


def test_assets_are_kept_for_a_year_and_checked_by_tag() -> None:
    html = get("/dashboard/experiments/diverse-home").text
    found = re.search(r'src="(/dashboard/static/plotly\.min\.js\?v=\w+)"', html)
    assert found is not None
    first = get(found[1])
    assert "immutable" in first.headers["cache-control"]
    assert first.headers["content-encoding"] == "gzip"
    assert "plotly.js" in first.text[:200]
    again = get(found[1], headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert get("/dashboard/static/dashboard.css").headers["cache-control"] == "no-cache"
    assert get("/dashboard/static/..%2fpages.py").status_code == 404


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.4312, "0.4312"), (-0.000012345, "−0.00001234"), (1234.5, "1,234"), (41.62, "41.62"), (None, "–")],
)
def test_numbers_have_four_digits_and_no_exponent(number: float | None, text: str) -> None:
    assert Formats("en").number(number) == text


def test_an_open_end_is_an_infinity_and_nothing_is_minus_zero() -> None:
    formats = Formats("en")
    assert formats.bounds(Bounds(low=None, high=0.1)) == "[−∞, +10.00 %]"
    assert formats.share(-0.0000001) == "0.00 %"
    assert formats.moment(0) == "1 Jan 1970 00:00"
    assert Formats("zh", "Asia/Shanghai").moment(0) == "1970年1月1日 08:00"
