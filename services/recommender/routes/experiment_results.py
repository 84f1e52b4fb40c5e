"""`GET /v1/experiments/{key}/results`: every number of the dashboard, as JSON or CSV.

Reads aggregates only. `request.state` carries `database`, `settings`, `experiments` (the store) and `team_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from services.recommender.experiments import report_text
from services.recommender.experiments.analysis.results import report
from services.recommender.experiments.metrics import Metric
from services.recommender.experiments.registry.store import ExperimentStore
from services.recommender.experiments.report import Report
from shared.actions import ActionTable
from shared.storage.database import Database
from shared.web.auth import require
from shared.web.json import JsonResponse

router = APIRouter(prefix="/v1", tags=["experiments"], dependencies=[Depends(require("admin"))])


@router.get(
    "/experiments/{key}/results",
    summary="What an experiment's data says",
    response_model=None,
    responses={200: {"content": {"application/json": {}, "text/csv": {"schema": {"type": "string"}}}}},
)
async def results(
    request: Request,
    key: Annotated[str, Path(min_length=1, max_length=64)],
    format: Annotated[Literal["json", "csv"] | None, Query()] = None,  # noqa: A002  (the public name)
) -> Response:
    """CSV by `Accept: text/csv` or `?format=csv`. Lifts are fractions of the control; null: unknown or unbounded."""
    database: Database = request.state.database
    store: ExperimentStore = request.state.experiments
    known: Mapping[str, Metric] = request.state.team_metrics
    actions = ActionTable.from_schema(request.state.settings.data)
    found = await database.run(_report, database, store, key, known, actions)
    if format == "csv" or (format is None and _wants_csv(request)):
        named = {"content-disposition": f'attachment; filename="{_file_name(key)}.csv"'}
        return Response(report_text.as_csv(found), media_type="text/csv; charset=utf-8", headers=named)
    return JsonResponse(report_text.as_dict(found))


def _report(
    database: Database, store: ExperimentStore, key: str, known: Mapping[str, Metric], actions: ActionTable
) -> Report:
    registered = store.get(key).registered
    return report(database, registered, time.time_ns() // 1000, known=known, actions=actions)


def _wants_csv(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "text/csv" in accepted and "application/json" not in accepted


def _file_name(key: str) -> str:
    return "".join(
        letter if letter.isalnum() or letter in "-_." else "_" for letter in key.encode("ascii", "replace").decode()
    )
