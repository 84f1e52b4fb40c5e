"""Rules read metrics that exist, every alert has a page and tests of both kinds; promtool has the last word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import needed
from tests.servers import program
from tests.unit.infra.declared import REPOSITORY, declared

PROMETHEUS = REPOSITORY / "infra" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.test.yml"))
# What a scrape, a recording rule or the target adds.
ADDED = {"instance", "job", "service", "rung", "queue"}
_METRIC = re.compile(r"\b(silkrec_\w+)(?:\{([^}]*)\})?")


def rules() -> list[dict[str, Any]]:
    return [
        rule for path in RULES for group in yaml.safe_load(path.read_text("utf-8"))["groups"] for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def test_every_metric_in_a_rule_is_declared_with_the_labels_it_is_chosen_by() -> None:
    known = declared()
    used = set()
    for rule in rules():
        for name, matchers in _METRIC.findall(rule["expr"]):
            used.add(name)
            assert name in known, f"{rule.get('alert') or rule['record']}: nobody declares {name}"
            chosen = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert chosen <= known[name] | ADDED, f"{name} has no label {chosen - known[name]}"
    assert len(used) > 20, "the rules were read"


def test_names_chosen_by_a_pattern_exist() -> None:
    for rule in alerts():
        for pattern in re.findall(r'__name__=~"([^"]+)"', rule["expr"]):
            assert sum(bool(re.fullmatch(pattern, name)) for name in declared()) >= 3, pattern


def test_recorded_series_that_a_rule_reads_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        for name in re.findall(r"\bsilkrec:[\w:]+", rule["expr"]):
            assert name in recorded, f"{rule.get('alert')}: nobody records {name}"


@pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts()])
def test_an_alert_has_a_severity_words_a_page_and_tests_of_both_kinds(alert: str) -> None:
    rule = next(rule for rule in alerts() if rule["alert"] == alert)
    assert rule["labels"]["severity"] in ("critical", "warning", "notice")
    assert {"summary", "description", "runbook"} == rule["annotations"].keys()
    assert rule["annotations"]["runbook"] == f"docs/runbooks/{alert}.md"
    page = (REPOSITORY / "docs" / "runbooks" / f"{alert}.md").read_text("utf-8")
    assert page.startswith(f"# {alert}\n")
    for heading in ("## Meaning", "## First look", "## Mend"):
        assert heading in page, f"{alert}.md has no {heading}"
    cases = [
        bool(tried["exp_alerts"])
        for path in TESTS
        for case in yaml.safe_load(path.read_text("utf-8"))["tests"]
        for tried in case["alert_rule_test"]
        if tried["alertname"] == alert
    ]
    assert True in cases, "seen firing"
    assert False in cases, "seen quiet"


def test_a_page_that_no_alert_points_to_is_gone() -> None:
    pages = {path.stem for path in (REPOSITORY / "docs" / "runbooks").glob("Silkrec*.md")}
    assert pages == {rule["alert"] for rule in alerts()}


def test_commands_and_metrics_in_the_pages_exist() -> None:
    known = {*declared(), *(rule["record"] for rule in rules() if "record" in rule)}
    known |= {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    for path in sorted((REPOSITORY / "docs" / "runbooks").glob("*.md")):
        for name in re.findall(r"\bsilkrec[:_][\w:]+", path.read_text("utf-8")):
            assert name in known, f"{path.name}: there is no {name}"


def promtool(*arguments: str | Path) -> None:
    with needed():
        command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_configuration_and_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_alerts_fire_and_stay_quiet_as_told(path: Path) -> None:
    promtool("test", "rules", path)
