"""Shipped variants: settings in force for everybody, as one entry of the active deployment.

    deployments.settings["serving"] = [{experiment, variant, scenes, settings, namespace, at_us}, …]

Oldest first; the last one wins. One whose variant served a release of its own has also `promoted` (what that release is
called since) and `replaced` (the one before).

They share the row with the release, so promoting, shipping and rolling back are one transaction each and are seen
together. `silkrec releases rollback` brings back the older row as a whole: what was shipped since goes with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from services.recommender.experiments.live import Shipped
from services.recommender.experiments.registry.sql import DEPLOYMENTS
from shared.contracts.manifest import Deployment, Release
from shared.contracts.variant_release import SETTING, VariantRelease
from shared.errors import Conflict
from shared.storage import deployments
from shared.storage.deployments import SERVING
from shared.storage.statements import raise_counter
from shared.storage.tables import models

REPLACED, PROMOTED = "replaced", "promoted"
# What an installation is called that ships settings before its first promotion: it serves popular items.
UNRELEASED = Release(release="unreleased", model_version=None, index_version=None)


def shipped_in(deployment: Deployment | None) -> tuple[Shipped, ...]:
    """An entry of another shape is left out: N-1 must live with what N ships."""
    return tuple(_entries(_rows(deployment)))


def _rows(deployment: Deployment | None) -> list[Mapping[str, Any]]:
    entries = deployment.settings.get(SERVING) if deployment is not None else None
    return [one for one in entries if isinstance(one, Mapping)] if isinstance(entries, list) else []


def put(connection: Connection, entry: Shipped, *, actor: str) -> Deployment:
    """In force for its scenes from this commit on. A release among its settings is promoted by the same row."""
    raise_counter(connection, DEPLOYMENTS)
    current = deployments.active(connection)
    base = _without(current, entry.experiment)
    row = _row(replace(entry, settings={name: one for name, one in entry.settings.items() if name != SETTING}))
    release, wanted = base, VariantRelease.of(entry.settings.get(SETTING))
    if wanted is not None:
        release = _promoted(connection, entry, wanted, base)
        row |= {PROMOTED: release.release, REPLACED: base.model_dump()}
    return _write(connection, current, entry.experiment, [row], release, actor, f"ship {entry.experiment}")


def remove(connection: Connection, experiment: str, *, actor: str) -> Deployment:
    """A release that it promoted gives way to the one before, unless another was promoted since."""
    raise_counter(connection, DEPLOYMENTS)
    current = deployments.active(connection)
    return _write(connection, current, experiment, [], _without(current, experiment), actor, f"roll back {experiment}")


def _without(current: Deployment | None, experiment: str) -> Release:
    """What is active once this experiment's entry is gone."""
    active = UNRELEASED if current is None else current.release
    own = next((one for one in _rows(current) if one.get("experiment") == experiment), {})
    if REPLACED in own and active.release == own.get(PROMOTED):
        return Release.model_validate(own[REPLACED])
    return active


def _write(
    connection: Connection,
    current: Deployment | None,
    experiment: str,
    rows: Sequence[Mapping[str, Any]],
    release: Release,
    actor: str,
    note: str,
) -> Deployment:
    """`rows` in place of those that the experiment has."""
    kept = [one for one in _rows(current) if one.get("experiment") != experiment]
    settings = {**(current.settings if current is not None else {}), SERVING: [*kept, *rows]}
    return deployments.promote(connection, release, settings=settings, actor=actor[:128], note=note)


def _promoted(connection: Connection, entry: Shipped, wanted: VariantRelease, active: Release) -> Release:
    """Raises Conflict for an index whose model is nowhere registered, so that a half release cannot go live."""
    index = wanted.index or active.index_version
    model = wanted.model
    if model is None:
        manifest = connection.scalar(select(models.c.manifest).where(models.c.version == index))
        if manifest is None:
            raise Conflict(f"index {index} is not registered; name its model in the variant's release too")
        model = manifest.get("model_version") or active.model_version
    # Caches and logs are keyed by the name, so it stands for one model and index for ever.
    name = f"x-{entry.experiment[:40]}-{entry.at_us}"
    return Release(release=name, model_version=model, index_version=index)


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
        if isinstance(row.get("settings"), Mapping):
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
