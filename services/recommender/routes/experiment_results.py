"""`GET /v1/experiments/{key}/results`: every number of the dashboard, as JSON or CSV.

Reads aggregates only. `request.state.results` is an `analysis.desk.Results`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from services.recommender.experiments import report_text
from services.recommender.experiments.analysis.desk import Results
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
    asked: Results = request.state.results
    found = await asked.database.run(asked.of, key)
    if format == "csv" or (format is None and _wants_csv(request)):
        named = {"content-disposition": f'attachment; filename="{_file_name(key)}.csv"'}
        return Response(report_text.as_csv(found), media_type="text/csv; charset=utf-8", headers=named)
    return JsonResponse(report_text.as_dict(found))


def _wants_csv(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "text/csv" in accepted and "application/json" not in accepted


def _file_name(key: str) -> str:
    return "".join(
        letter if letter.isalnum() or letter in "-_." else "_" for letter in key.encode("ascii", "replace").decode()
    )
