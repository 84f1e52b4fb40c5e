"""What an engine's metrics were on a GPU, to be scraped once more."""

from __future__ import annotations

import itertools
import json
from typing import Any

from fastapi import FastAPI, Response

from tests.nginx import REPOSITORY

RECORDED: dict[str, Any] = json.loads((REPOSITORY / "tests" / "data" / "gpu_metrics.json").read_text())
BUSY, FRAGMENTED = "lite: 64 clients without a pause", "m: 64 clients without a pause"


def recorded(phase: str) -> FastAPI:
    """Each scrape gets the next sample; after the last one comes the first."""
    app, samples = FastAPI(), itertools.cycle(RECORDED["phases"][phase])

    @app.get("/metrics")
    def metrics() -> Response:
        lines = [f"silkrec_inference_{name} {value}" for name, value in next(samples).items()]
        return Response("\n".join([*lines, ""]), media_type="text/plain; version=0.0.4")

    return app
