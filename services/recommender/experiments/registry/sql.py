"""The counters that are the locks of all who write, and the audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from shared.storage.tables import experiment_audit

EXPERIMENTS = "experiments"
DEPLOYMENTS = "deployments"


def write_audit(
    connection: Connection, key: str, *, at_us: int, actor: str, action: str, detail: Mapping[str, Any]
) -> None:
    connection.execute(
        insert(experiment_audit).values(
            experiment=key, at_us=at_us, actor=actor[:128], action=action, detail=dict(detail)
        )
    )
