"""The same numbers as files: JSON as the Report has them, CSV as one number a line.

While an alarm blocks, verdicts and the decision are left out of both, as on the page.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from services.recommender.experiments.dashboard.guard import dashboard_of, viewer
from services.recommender.experiments.dashboard.ports import ExperimentRow
from services.recommender.experiments.dashboard.view.results import is_blocked
from services.recommender.experiments.report import Decision, Report
from shared.errors import NotFound

_LIST_COLUMNS = (
    "experiment",
    "status",
    "holdout",
    "health",
    "units",
    "simulated",
    "owner",
    "started_at_us",
    "as_of_us",
    "shipped",
)
_AUDIT_COLUMNS = ("at_us", "actor", "action", "detail")
# A spreadsheet runs what begins so as a formula, and names and hypotheses are other people's text.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def add_to(pages: APIRouter) -> None:
    pages.add_api_route("/experiments.{kind}", experiments, methods=["GET"])
    pages.add_api_route("/experiments/{key}/results.{kind}", results, methods=["GET"])
    pages.add_api_route("/experiments/{key}/audit.{kind}", audit, methods=["GET"])


async def experiments(request: Request, kind: str) -> Response:
    visit = viewer(request)
    rows = [_list_row(row) for row in await dashboard_of(request).port.list()]
    return visit.finish(answer(kind, "experiments", rows, _LIST_COLUMNS, rows))


async def results(request: Request, key: str, kind: str) -> Response:
    visit = viewer(request)
    body = document(await dashboard_of(request).port.report(key))
    rows = [{"where": where, "value": value} for where, value in flat(body)]
    return visit.finish(answer(kind, f"{key}-results", body, ("where", "value"), rows))


async def audit(request: Request, key: str, kind: str) -> Response:
    visit = viewer(request)
    rows = [asdict(entry) for entry in await dashboard_of(request).port.audit(key)]
    return visit.finish(answer(kind, f"{key}-audit", rows, _AUDIT_COLUMNS, rows))


def answer(kind: str, name: str, body: Any, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Response:
    """`name` of the file. Raises NotFound unless `kind` is csv or json."""
    if kind == "json":
        headers = {"content-disposition": f'inline; filename="{_file(name)}.json"'}
        return Response(orjson.dumps(body, option=orjson.OPT_INDENT_2), headers=headers, media_type="application/json")
    if kind != "csv":
        raise NotFound(f"there is no .{kind[:20]} of it, only .csv and .json")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    headers = {"content-disposition": f'attachment; filename="{_file(name)}.csv"'}
    # The mark at the front is what makes Excel read Chinese as UTF-8.
    return Response("﻿" + text.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")


def document(report: Report) -> dict[str, Any]:
    body: dict[str, Any] = asdict(report)
    if is_blocked(report):
        body["conclusion"] |= {"decision": Decision.BLOCKED, "variant": None, "reasons": ()}
        cells = [cell for part in ("metrics", "segments") for row in body[part] for cell in row["cells"]]
        for cell in cells:
            cell["verdict"] = None
    return body


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its way: `metrics/ctr/cells/treatment/fixed/low`. Rows go by name where they have one."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flat(part, f"{where}/{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from flat(part, f"{where}/{_name(part, place)}")
    else:
        yield where, value


def _name(part: Any, place: int) -> str:
    if not isinstance(part, Mapping):
        return str(place)
    names = [str(part[name]) for name in ("metric", "name", "code", "day", "variant") if part.get(name)]
    return "/".join(names) or str(place)


def _list_row(row: ExperimentRow) -> dict[str, Any]:
    experiment = row.experiment
    return {
        "experiment": experiment.definition.key,
        "status": experiment.definition.status,
        "holdout": experiment.definition.holdout is not None,
        "health": row.health,
        "units": row.units,
        "simulated": row.simulated,
        "owner": experiment.owner,
        "hypothesis": experiment.hypothesis,
        "started_at_us": experiment.started_at_us,
        "as_of_us": row.as_of_us,
        "shipped": experiment.shipped,
    }


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        value = orjson.dumps(value, default=str).decode()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def _file(name: str) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "_" for sign in name)
