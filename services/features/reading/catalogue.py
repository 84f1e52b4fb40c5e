"""Catalogue rows by revision, for the readers that keep the catalogue in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from shared.storage.tables import items


@dataclass(frozen=True, slots=True)
class ItemRow:
    """`known` False: only seen in events, no content was PUT yet. Times are microseconds since 1970 UTC."""

    item_index: int
    item_id: str
    known: bool
    item_type: str | None
    title: str | None
    categories: tuple[str, ...]
    is_hidden: bool
    available_from_us: int | None
    available_until_us: int | None
    price: float | None
    currency: str | None
    created_at_us: int
    properties: Mapping[str, Any]
    revision: int
    deleted: bool


_COLUMNS = (
    items.c.item_index,
    items.c.item_id,
    items.c.known,
    items.c.item_type,
    items.c.title,
    items.c.categories,
    items.c.is_hidden,
    items.c.available_from_us,
    items.c.available_until_us,
    items.c.price,
    items.c.currency,
    items.c.created_at_us,
    items.c.properties,
    items.c.revision,
    items.c.deleted_at_us,
)


def read_changed_items(connection: Connection, since_revision: int, limit: int) -> list[ItemRow]:
    """At least `limit` rows if there are as many, ordered by (revision, item_index); a revision is never cut in two,
    so that the caller may go on from the last row's revision."""
    ordered = select(*_COLUMNS).order_by(items.c.revision, items.c.item_index)
    found: list[Row[Any]] = list(connection.execute(ordered.where(items.c.revision > since_revision).limit(limit)))
    if found and len(found) == limit:
        last = found[-1]
        rest = and_(items.c.revision == last.revision, items.c.item_index > last.item_index)
        found += connection.execute(ordered.where(rest))
    return [_row(row) for row in found]


def _row(row: Row[Any]) -> ItemRow:
    values: list[Any] = list(row)
    deleted_at_us = values.pop()
    values[5] = tuple(values[5])
    values.append(deleted_at_us is not None)
    return ItemRow(*values)
