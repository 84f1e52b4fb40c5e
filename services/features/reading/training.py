"""Every event of every history as columns: what a model learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, select

from services.features.reading.history import MICROSECONDS, history_codes
from shared.actions import ActionTable
from shared.contracts.history import Int8, Int32, Int64
from shared.storage.tables import events, user_state

CHUNK_EVENTS = 100_000
_ROW = np.dtype([("user", "i4"), ("item", "i4"), ("action", "i1"), ("time_us", "i8")])


@dataclass(frozen=True, slots=True)
class TrainingEvents:
    """Columns [n] sorted by user, occurred_at, event_seq. `user` is an ordinal into `user_keys`, `time` in seconds."""

    user: Int32
    item: Int32
    action: Int8
    time: Int64
    user_keys: list[str]


def read_training_events(
    connection: Connection, actions: ActionTable, chunk_events: int = CHUNK_EVENTS
) -> TrainingEvents:
    """Events committed before the call. Sorting happens here: in the database it would be one statement over the whole
    table, longer than any time-out; ranges of the primary key are short ones. Peak memory: about 60 bytes an event."""
    deleted = set(connection.scalars(select(user_state.c.user_key).where(user_state.c.deleted_at_us.is_not(None))))
    ordinal: dict[str, int] = {}
    chunks = [np.empty(0, _ROW)]
    for user_keys, chunk in _chunks(connection, actions, chunk_events):
        chunk["user"] = [-1 if key in deleted else ordinal.setdefault(key, len(ordinal)) for key in user_keys]
        chunks.append(chunk[chunk["user"] >= 0])
    rows = np.concatenate(chunks)
    del chunks
    ordered = sorted(ordinal)
    place = np.empty(len(ordered), np.int32)
    place[[ordinal[key] for key in ordered]] = np.arange(len(ordered), dtype=np.int32)
    user = place[rows["user"]]
    order = np.lexsort((rows["time_us"], user))  # stable, and rows came by event_seq
    rows = rows[order]
    return TrainingEvents(
        user[order],
        np.ascontiguousarray(rows["item"]),
        np.ascontiguousarray(rows["action"]),
        rows["time_us"] // MICROSECONDS,
        ordered,
    )


def _chunks(
    connection: Connection, actions: ActionTable, chunk_events: int
) -> Iterator[tuple[tuple[str, ...], npt.NDArray[np.void]]]:
    """By ascending event_seq; gaps of a purge cost nothing, because each page starts after the last row seen."""
    newest = connection.scalar(select(func.max(events.c.event_seq)))
    codes = history_codes(actions)
    if newest is None or not codes:
        return
    page = (
        select(events.c.event_seq, events.c.user_key, events.c.item_index, events.c.action, events.c.occurred_at_us)
        .where(events.c.event_seq <= newest, events.c.item_index.is_not(None), events.c.action.in_(codes))
        .order_by(events.c.event_seq)
        .limit(chunk_events)
    )
    after = -1
    while True:
        rows = connection.execute(page.where(events.c.event_seq > after)).all()
        if rows:
            seq, user_keys, item, action, time_us = zip(*rows, strict=True)
            after = seq[-1]
            chunk = np.empty(len(rows), _ROW)
            chunk["item"], chunk["action"], chunk["time_us"] = item, action, time_us
            yield user_keys, chunk
        if len(rows) < chunk_events:
            return
