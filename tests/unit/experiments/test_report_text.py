from __future__ import annotations

import csv
import io

import orjson

from services.recommender.experiments.report_text import COLUMNS, as_csv, as_dict
from tests.unit.experiments.reports import report


def lines() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(report()))))


def test_json_holds_every_number_and_survives_a_round_trip() -> None:
    content = as_dict(report())
    assert orjson.loads(orjson.dumps(content)) == orjson.loads(orjson.dumps(as_dict(report())))
    assert content["conclusion"]["reasons"] == [{"code": "leak", "facts": {"units": 2}}, {"code": "bare", "facts": {}}]
    assert content["metrics"][0]["cells"][1]["fixed"] == {"low": -0.01, "high": None}


def test_csv_has_a_line_a_quantity_with_its_interval() -> None:
    wanted = {"table": "metric", "name": "ctr", "variant": "b", "quantity": "lift"}
    found = [line for line in lines() if all(line[name] == value for name, value in wanted.items())]
    assert [(line["value"], line["low"], line["high"]) for line in found] == [("0.02", "-0.01", "")]
    assert tuple(lines()[0]) == COLUMNS


def test_text_that_a_spreadsheet_would_run_is_defused() -> None:
    text = as_csv(report())
    assert "'=cmd()" in text
    assert "'@de" in text


def test_every_table_of_the_page_is_in_the_csv() -> None:
    tables = {line["table"] for line in lines()}
    assert tables == {
        "experiment", "conclusion", "reason", "alarm", "variant", "metric", "quality", "exposures", "lift", "segment",
    }  # fmt: skip
