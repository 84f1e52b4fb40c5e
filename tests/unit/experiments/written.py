"""Experiments as people write them, for tests."""

from __future__ import annotations

from typing import Any

from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.document import ExperimentBody


def body(key: str = "mmr", **changes: Any) -> dict[str, Any]:
    variants = [
        {"key": "control", "weight": 0.5, "settings": {}},
        {"key": "diverse", "weight": 0.5, "settings": {"diversity": 0.6}},
    ]
    return {"key": key, "owner": "ann", "hypothesis": "more kinds, more clicks", "variants": variants, **changes}


def varying(**settings: Any) -> list[dict[str, Any]]:
    return [
        {"key": "control", "weight": 0.5, "settings": {}},
        {"key": "changed", "weight": 0.5, "settings": settings},
    ]


def registered(key: str = "mmr", **changes: Any) -> RegisteredExperiment:
    return ExperimentBody.model_validate(body(key, **changes)).registered()
