"""Served slates for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.recommender.journal import ServedSlate

SERVED_AT_US = 1_700_000_000_000_000


def slate(recommendation_id: str = "rec-1", *, items: int = 3, **changes: Any) -> ServedSlate:
    values: dict[str, Any] = {
        "recommendation_id": recommendation_id,
        "user_key": "u:ann",
        "scene": "home",
        "served_at_us": SERVED_AT_US,
        "release": "r-1",
        "model_version": "m-1",
        "index_version": "i-1",
        "took_us": 21_500,
        "degraded": [{"stage": "rank", "cause": "deadline", "fallback": "retrieval"}],
        "request": {"body": {"count": items}, "sources": ["popular", "user"], "rung": "model"},
        "seed": 2**62 + 1,
        "item_index": np.arange(items, dtype=np.int32) + 10,
        "score": np.linspace(1, 0.5, items, dtype=np.float32),
        "propensity": np.ones(items),
        "source_bits": np.full(items, 3, np.int64),
    }
    return ServedSlate(**{**values, **changes})
