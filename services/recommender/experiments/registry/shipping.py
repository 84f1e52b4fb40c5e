"""Shipped variants: settings in force for everybody, as one entry of the active deployment.

    deployments.settings["serving"] = [{experiment, variant, scenes, settings, namespace, at_us}, …]

Oldest first; the last one wins.

They share the row with the release, so promoting, shipping and rolling back are one transaction each and are seen
together. `silkrec releases rollback` brings back the older row as a whole: what was shipped since goes with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from services.recommender.experiments.live import Shipped
from services.recommender.experiments.registry.sql import DEPLOYMENTS
from shared.contracts.manifest import Deployment, Release
from shared.storage import deployments
from shared.storage.deployments import SERVING
from shared.storage.statements import raise_counter

# What an installation is called that ships settings before its first promotion: it serves popular items.
UNRELEASED = Release(release="unreleased", model_version=None, index_version=None)


def shipped_in(deployment: Deployment | None) -> tuple[Shipped, ...]:
    """An entry of another shape is left out: N-1 must live with what N ships."""
    entries = deployment.settings.get(SERVING) if deployment is not None else None
    return tuple(_entries(entries if isinstance(entries, list) else ()))


def put(connection: Connection, entry: Shipped, *, actor: str) -> Deployment:
    """In force for its scenes from this commit on."""
    return _replace(connection, entry.experiment, entry, actor, f"ship {entry.experiment} {entry.variant}")


def remove(connection: Connection, experiment: str, *, actor: str) -> Deployment:
    return _replace(connection, experiment, None, actor, f"roll back {experiment}")


def _replace(connection: Connection, experiment: str, entry: Shipped | None, actor: str, note: str) -> Deployment:
    raise_counter(connection, DEPLOYMENTS)
    current = deployments.active(connection)
    kept = [one for one in shipped_in(current) if one.experiment != experiment]
    entries = [_row(one) for one in (*kept, *(() if entry is None else (entry,)))]
    settings = {**(current.settings if current is not None else {}), SERVING: entries}
    release = UNRELEASED if current is None else current.release
    return deployments.promote(connection, release, settings=settings, actor=actor[:128], note=note)


def _row(entry: Shipped) -> dict[str, Any]:
    return {
        "experiment": entry.experiment,
        "variant": entry.variant,
        "scenes": sorted(entry.scenes),
        "settings": dict(entry.settings),
        "namespace": entry.namespace,
        "at_us": entry.at_us,
    }


def _entries(rows: Iterable[Any]) -> Iterable[Shipped]:
    for row in rows:
        if isinstance(row, Mapping) and isinstance(row.get("settings"), Mapping):
            scenes = frozenset(str(name) for name in row.get("scenes", ()))
            at_us = row.get("at_us", 0)
            yield Shipped(
                str(row.get("experiment", "")),
                str(row.get("variant", "")),
                scenes,
                dict(row["settings"]),
                str(row.get("namespace", "")),
                at_us if isinstance(at_us, int) else 0,
            )
