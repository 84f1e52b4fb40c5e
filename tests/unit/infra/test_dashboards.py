"""Dashboards are what their code says, and every query asks for what a service has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from infra.grafana.boards import BOARDS
from infra.grafana.generate import differing
from infra.grafana.panels import COLUMNS, Panel, as_json
from tests.unit.infra.declared import declared
from tests.unit.infra.parts import INFRA, run

GRAFANA = INFRA / "grafana"
# What a scrape adds.
ADDED = {"instance", "job", "service"}


def panels() -> Iterator[tuple[str, Panel]]:
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                yield board.name, panel


def queries() -> list[tuple[str, str, str]]:
    """(where, expression, legend)."""
    return [
        (f"{board}: {panel.title}", query.expr, query.legend) for board, panel in panels() for query in panel.queries
    ]


def test_files_are_what_the_code_makes() -> None:
    assert differing() == [], "python -m infra.grafana.generate"


def test_there_is_a_board_for_each_part_and_every_panel_says_why() -> None:
    assert {board.name for board in BOARDS} == {"overview", "engine", "retrieval", "data", "jobs", "experiments"}
    for where, panel in panels():
        assert panel.why.endswith("."), f"{where}: {panel.title}"
        assert panel.queries
        assert len({query.legend for query in panel.queries}) == len(panel.queries), f"{where}: {panel.title}"


def test_no_two_panels_lie_upon_each_other() -> None:
    for board in BOARDS:
        taken: set[tuple[int, int]] = set()
        content = as_json(board)
        assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
        for panel in content["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{board.name}: {panel['title']}"
            assert place["x"] + place["w"] <= COLUMNS
            taken |= cells


def test_every_metric_is_declared_with_the_labels_that_are_asked_for() -> None:
    there, used = declared(), set()
    for where, expr, legend in queries():
        names = re.findall(r"\bsilkrec_\w+", expr)
        assert names or "up{" in expr, where
        used |= set(names)
        labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
        for group in re.findall(r"\bby \(([^)]*)\)", expr):
            labels |= {label.strip() for label in group.split(",")}
        for name in names:
            assert name in there, f"{where}: nobody declares {name}"
            missing = labels - there[name] - ADDED
            assert not missing, f"{where}: {name} has no {missing}"
        for name, matchers in re.findall(r"\b(silkrec_\w+)\{([^}]*)\}", expr):
            chosen = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert chosen <= there[name] | ADDED, f"{where}: {name} has no {chosen - there[name]}"
    assert len(used) > 70


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    named = [
        {"record": f"panel:{at}", "expr": expr.replace("$__rate_interval", "1m")}
        for at, (_, expr, _) in enumerate(queries())
    ]
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": named}]}))
    run("promtool", "check", "rules", rules)


@pytest.mark.parametrize("board", [board.name for board in BOARDS])
def test_grafana_finds_its_source_by_the_variable_alone(board: str) -> None:
    content = json.loads((GRAFANA / "dashboards" / f"{board}.json").read_text())
    (variable,) = content["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in content["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == f"${{{variable['name']}}}"


def test_grafana_is_told_where_boards_and_source_are() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in compose["volumes"])
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "silkrec.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(provider["options"]["path"])
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "$PROMETHEUS_URL"
    assert "PROMETHEUS_URL" in compose["environment"]
