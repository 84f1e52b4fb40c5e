"""The two arms into the database, in chunks; a second time changes nothing, and a killed import is ended by the next.

Only what an experiment's analysis reads is written. Histories, popularity and `user_state` stay as they are, and the
items are hidden: the log of another shop must not change what this one serves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, func, select, update

from services.features.items.allocate import ensure_items, raise_catalogue
from services.recommender.experiments.open_bandit.arms import item_id, key_of, registered, rows_of
from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy
from services.recommender.experiments.registered import RegisteredExperiment
from services.recommender.experiments.registry.document import dump
from services.recommender.experiments.registry.sql import EXPERIMENTS, write_audit
from shared.actions import ActionTable
from shared.errors import Conflict, ValidationFailed
from shared.storage.database import Database
from shared.storage.statements import insert_new, raise_counter
from shared.storage.tables import (
    events,
    experiment_slates,
    experiments,
    exposures,
    items,
)

CHUNK = 2_000
ACTOR = "silkrec open-bandit import"


@dataclass(frozen=True, slots=True)
class Imported:
    """`new_*`: what was not there before."""

    experiment: str
    rows: int
    clicks: int
    new_exposures: int
    new_events: int


def import_arms(
    database: Database,
    actions: ActionTable,
    campaign: Campaign,
    logs: dict[Policy, BanditLog],
    *,
    now_us: int,
    advance: Callable[[int], None] = lambda _rows: None,
) -> Imported:
    """`logs`: the control first. `advance` hears of rows done. Raises Conflict when the key is somebody else's
    experiment, ValidationFailed when the shop declares no impressions or clicks."""
    impression, click = (_code(actions, name) for name in ("impression", "click"))
    database.transact(lambda connection: _put_experiment(connection, registered(campaign, logs), now_us))
    count = 1 + max(int(log.item.max()) for log in logs.values())
    ids = [item_id(campaign, item) for item in range(count)]
    index = database.transact(lambda connection: _put_items(connection, ids, now_us))
    new_exposures = new_events = 0
    for policy, log in logs.items():
        rows = rows_of(campaign, policy, log, [index[one] for one in ids], impression, click)
        while chunk := list(itertools.islice(rows, CHUNK)):
            made = database.transact(partial(_put_chunk, chunk=chunk))
            new_exposures, new_events = new_exposures + made[0], new_events + made[1]
            advance(len(chunk))
    return Imported(
        key_of(campaign),
        sum(len(log.click) for log in logs.values()),
        sum(int(log.click.sum()) for log in logs.values()),
        new_exposures,
        new_events,
    )


def _code(actions: ActionTable, name: str) -> int:
    found = actions.resolve(name, None)
    if found is None:
        raise ValidationFailed(f"silkrec.yaml declares no event type {name!r} without bands, which the log's rows are")
    return found.code


def _put_experiment(connection: Connection, found: RegisteredExperiment, now_us: int) -> None:
    key = found.definition.key
    revision = raise_counter(connection, EXPERIMENTS)  # the lock of all who write experiments
    row = connection.execute(select(experiments.c.document).where(experiments.c.experiment == key)).first()
    if row is not None:
        if row.document.get("owner") != found.owner:
            raise Conflict(f"there is an experiment {key!r} that the import did not make; it is left as it is")
        return
    connection.execute(
        experiments.insert().values(
            experiment=key,
            status=str(found.definition.status),
            document=dump(found),
            revision=revision,
            created_at_us=found.created_at_us,
            updated_at_us=found.updated_at_us,
            started_at_us=found.started_at_us,
            stopped_at_us=found.stopped_at_us,
        )
    )
    write_audit(connection, key, at_us=now_us, actor=ACTOR, action="import", detail={})


def _put_items(connection: Connection, ids: Sequence[str], now_us: int) -> dict[str, int]:
    index = ensure_items(connection, ids, now_us=now_us)
    shown = items.c.item_id.in_(ids) & items.c.known.is_(False) & items.c.is_hidden.is_(False)
    if connection.scalar(select(func.count()).select_from(items).where(shown)):
        connection.execute(update(items).where(shown).values(is_hidden=True, revision=raise_catalogue(connection)))
    return index


Row = dict[str, Any]


def _put_chunk(connection: Connection, chunk: Sequence[tuple[Row, Row, list[Row]]]) -> tuple[int, int]:
    """New exposures and new events. One experiment's chunk."""
    exposed, slates, happened = zip(*chunk, strict=True)
    told = list(itertools.chain.from_iterable(happened))
    same = exposures.c.experiment == exposed[0]["experiment"]
    units = [row["unit"] for row in exposed]
    met = connection.scalar(select(func.count()).select_from(exposures).where(same, exposures.c.unit.in_(units)))
    known = events.c.event_id.in_([row["event_id"] for row in told])
    had = connection.scalar(select(func.count()).select_from(events).where(known))
    insert_new(connection, exposures, exposed)
    insert_new(connection, experiment_slates, slates)
    insert_new(connection, events, told)
    return len(exposed) - (met or 0), len(told) - (had or 0)
