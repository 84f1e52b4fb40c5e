"""What the three kinds of import have in common: a chunk of a file becomes a batch that can be written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection

from services.features.bulk.event_cells import EventColumns
from services.features.bulk.events import EventReader
from services.features.bulk.plan import Plan
from services.features.bulk.records import RecordReader, decide_units
from services.features.bulk.rejects import Reject
from services.features.bulk.sources import Chunk, Source
from services.features.bulk.values import TimeUnit, as_array, decide_unit
from services.features.bulk.write import write_columns
from services.features.ingest.validation import EventValidator
from services.features.items.store import put_items
from services.features.users.profiles import put_profiles
from shared.actions import ActionTable
from shared.errors import ValidationFailed
from shared.settings.roots import Settings

# Units of times are decided by this many rows, so that every run over the file decides alike.
LOOKED_AT = 1000
DELETED = "this user was deleted; PUT the user_id again before sending events of it"
PENDING = "this user is being deleted; send it again once the deletion has left the database"


@dataclass(frozen=True, slots=True)
class Done:
    """`rejects` by row, those of the file's own faults included."""

    accepted: int
    duplicates: int
    rejects: list[Reject]


@dataclass(frozen=True)
class Batch:
    """`write` within a transaction, again after a roll-back. `events`: what would be written, of events only."""

    last_row: int
    sound: int
    rejects: list[Reject]
    write: Callable[[Connection], Done]
    events: EventColumns | None = None


class Meant(Protocol):
    """services.features.bulk.job.Wanted, as far as it is used here."""

    @property
    def types(self) -> Any: ...
    @property
    def splits(self) -> Any: ...
    @property
    def time_unit(self) -> TimeUnit: ...
    @property
    def id_prefix(self) -> str: ...


@dataclass(frozen=True)
class Reading:
    plan: Plan
    names: Sequence[str]
    batch: Callable[[Chunk, int], Batch]


def make_reading(source: Source, plan: Plan, settings: Settings, wanted: Meant) -> Reading:
    """Raises ValidationFailed for event types that are not declared."""
    names = list(dict.fromkeys(plan.columns.values()))
    first = next(source.read(names, batch_rows=LOOKED_AT), None)
    if plan.kind == "events":
        return Reading(plan, names, _events(source, plan, settings, wanted, first))
    units = {} if first is None else decide_units(plan, settings.data, first, wanted.time_unit)
    reader = RecordReader(
        plan, settings.data, units=units, splits=wanted.splits, empty_is_missing=source.empty_is_missing
    )
    return Reading(plan, names, _items(reader) if plan.kind == "items" else _users(reader))


def _events(
    source: Source, plan: Plan, settings: Settings, wanted: Meant, first: Chunk | None
) -> Callable[[Chunk, int], Batch]:
    actions = ActionTable.from_schema(settings.data)
    told = list(wanted.types.values())
    if "event_type" in plan.constants:
        told.append(wanted.types.get(plan.constants["event_type"], plan.constants["event_type"]))
    for name in told:
        if name not in actions.event_types:
            near = difflib.get_close_matches(name, actions.event_types, 1)
            hint = f"did you mean {near[0]}?" if near else f"declared are {', '.join(actions.event_types)}"
            raise ValidationFailed(f"event type {name!a} is not declared in silkrec.yaml; {hint}")
    unit = wanted.time_unit
    if unit == "auto":
        column = None if first is None else first.columns.get(plan.columns.get("occurred_at", ""))
        unit = "s" if column is None else decide_unit(as_array(column, empty_is_missing=source.empty_is_missing))
    tolerance_s = settings.features.future_tolerance_s
    reader = EventReader(
        plan, actions, EventValidator(actions, future_tolerance_s=tolerance_s), future_tolerance_s=tolerance_s,
        unit=unit, types=wanted.types, id_prefix=wanted.id_prefix, empty_is_missing=source.empty_is_missing,
    )  # fmt: skip

    def batch(chunk: Chunk, at_us: int) -> Batch:
        columns, rejects = reader.read(chunk, at_us)
        rejects = _sorted([*chunk.malformed, *rejects])

        def write(connection: Connection) -> Done:
            result = write_columns(connection, columns, actions, received_at_us=at_us)
            refused = [
                Reject(columns.row[place], "user_deleted", DELETED, {"event_id": columns.event_id[place]})
                for place in result.refused.tolist()
            ]
            return Done(result.accepted, result.duplicates, _sorted([*rejects, *refused]))

        return Batch(chunk.last_row, len(columns), rejects, write, columns)

    return batch


def _items(reader: RecordReader) -> Callable[[Chunk, int], Batch]:
    def batch(chunk: Chunk, at_us: int) -> Batch:
        found, faults = reader.items(chunk)
        rejects = _sorted([*chunk.malformed, *faults])

        def write(connection: Connection) -> Done:
            if found:
                put_items(connection, [(item_id, content) for _, item_id, content in found], at_us)
            return Done(len(found), 0, rejects)

        return Batch(chunk.last_row, len(found), rejects, write)

    return batch


def _users(reader: RecordReader) -> Callable[[Chunk, int], Batch]:
    def batch(chunk: Chunk, at_us: int) -> Batch:
        found, faults = reader.users(chunk)
        rejects = _sorted([*chunk.malformed, *faults])

        def write(connection: Connection) -> Done:
            refused = put_profiles(connection, [write for _, write in found], at_us).refused if found else frozenset()
            pending = [
                Reject(row, "deletion_pending", PENDING, {"user_id": write.user_key[2:]})
                for row, write in found
                if write.user_key in refused
            ]
            return Done(len(found) - len(pending), 0, _sorted([*rejects, *pending]))

        return Batch(chunk.last_row, len(found), rejects, write)

    return batch


def _sorted(rejects: list[Reject]) -> list[Reject]:
    return sorted(rejects, key=lambda reject: reject.row)
