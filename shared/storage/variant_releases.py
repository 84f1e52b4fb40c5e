"""Which releases the variants of experiments ask for, read out of the experiments' documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, select

from shared.contracts.variant_release import MOST, SETTING, VariantRelease
from shared.storage.tables import experiments


def wanted(connection: Connection) -> tuple[VariantRelease, ...]:
    """At most MOST: those of what runs, the oldest first, then those of the newest drafts, so that what is about to
    start is loaded already."""
    table = experiments.c
    query = select(table.status, table.document, table.created_at_us).where(table.status.in_(("running", "draft")))
    rows = connection.execute(query).all()
    running = sorted((row for row in rows if row.status == "running"), key=lambda row: row.created_at_us)
    drafts = sorted((row for row in rows if row.status == "draft"), key=lambda row: -row.created_at_us)
    found = dict.fromkeys(one for row in (*running, *drafts) for one in of_document(row.document))
    return tuple(found)[:MOST]


def of_document(document: Mapping[str, Any]) -> Iterator[VariantRelease]:
    """Of variants that are not killed. What another version of SilkRec wrote otherwise is left out."""
    killed, variants = document.get("killed", ()), document.get("variants", ())
    for variant in variants if isinstance(variants, list) else ():
        if isinstance(variant, Mapping) and variant.get("key") not in killed:
            settings = variant.get("settings")
            release = VariantRelease.of(settings.get(SETTING)) if isinstance(settings, Mapping) else None
            if release is not None:
                yield release
