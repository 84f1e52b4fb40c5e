"""Slates of experiments that the journal had to drop, counted by variant: their page must say so."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection

from services.recommender.journal.record import ServedSlate
from shared.storage.statements import upsert
from shared.storage.tables import experiment_losses

Losses = Counter[tuple[str, int, str]]
"""{(experiment, phase, variant): slates}. In memory until the database takes it; a process that is killed before takes
its count along, for a journal that cannot be written has no place for it either."""


def count(losses: Losses, slate: ServedSlate) -> None:
    losses.update((one["experiment"], one["phase"], one["variant"]) for one in slate.experiments)


def put_losses(connection: Connection, losses: Losses) -> None:
    """Adds to what is there; the caller owns the transaction. Sorted, as every writer of several rows locks them."""
    names = ("experiment", "phase", "variant", "slates")
    rows = [dict(zip(names, (*key, losses[key]), strict=True)) for key in sorted(losses)]
    added = experiment_losses.c.slates
    upsert(connection, experiment_losses, rows, lambda offered: {"slates": added + offered.slates})
