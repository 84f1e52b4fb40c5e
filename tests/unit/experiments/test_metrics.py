from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.recommender.experiments.metrics import BUILT_IN, load, of_plan, parse
from services.recommender.experiments.registered import Plan
from shared.errors import ValidationFailed

OWN: dict[str, Any] = {"key": "baskets", "kind": "proportion", "numerator": {"event_types": ["add_to_cart"]}}


def test_without_a_file_the_built_in_metrics_are_known(tmp_path: Path) -> None:
    assert list(load(tmp_path / "metrics.yaml")) == [metric.key for metric in BUILT_IN]


def test_a_metric_of_the_file_is_added(tmp_path: Path) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(
        "metrics:\n  - {key: baskets, kind: proportion, numerator: {event_types: [add_to_cart]}, window_days: 3}\n"
    )
    assert load(file)["baskets"].window_days == 3


def test_a_built_in_metric_may_be_defined_anew() -> None:
    assert parse([{**OWN, "key": "conversion"}])["conversion"].numerator.event_types == ("add_to_cart",)


@pytest.mark.parametrize(
    ("change", "pointer", "message"),
    [
        ({"kind": "ratio"}, "/metrics/0", "only a ratio has one"),
        ({"winsorise": 0.99}, "/metrics/0", "means only"),
        ({"window_days": 0}, "/metrics/0/window_days", "greater than or equal to 1"),
        ({"window": 3}, "/metrics/0/window", "not permitted"),
        ({"key": "Baskets!"}, "/metrics/0/key", "pattern"),
        ({"numerator": {"event_types": []}}, "/metrics/0/numerator/event_types", "at least 1"),
    ],
)
def test_a_faulty_metric_is_refused_with_the_place_and_the_reason(
    change: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(ValidationFailed) as raised:
        parse({"metrics": [{**OWN, **change}]})
    assert [fault.pointer for fault in raised.value.errors] == [pointer]
    assert message in raised.value.errors[0].message


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValidationFailed) as raised:
        parse([OWN, OWN, {"key": "x"}])
    assert [fault.pointer for fault in raised.value.errors] == ["/metrics/1/key", "/metrics/2/numerator"]


@pytest.mark.parametrize("text", ["metrics: 3", "metrics: [", "7"])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.yaml").write_text(text)
    with pytest.raises(ValidationFailed):
        load(tmp_path / "metrics.yaml")


def test_a_plan_gives_its_metrics_with_the_primary_one_first_and_each_once() -> None:
    plan = Plan(primary="conversion", secondary=("ctr", "conversion"), guardrails={"ctr": 0.1})
    types = ["click", "impression", "purchase"]
    assert [metric.key for metric in of_plan(plan, parse([]), types)] == ["conversion", "ctr"]


def test_a_plan_of_an_unknown_metric_or_an_undeclared_event_type_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="'clicks'; known are"):
        of_plan(Plan(primary="clicks"), parse([]), ["click"])
    with pytest.raises(ValidationFailed, match="declare that in event_types"):
        of_plan(Plan(primary="ctr"), parse([]), ["click"])
