"""Items in the database: put, patch, delete, get, list. Each function is one transaction's work on a connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, literal, select

from services.features.items.allocate import IDS_A_STATEMENT, allocate, raise_catalogue
from services.features.items.content import ItemContent, ItemPatch
from services.features.items.validation import check_content
from shared.errors import NotFound, ValidationFailed
from shared.storage.statements import upsert
from shared.storage.tables import items

_COLUMNS = tuple(column for column in items.c if column.name != "embeddings")
_KEPT = ("item_index", "item_id")
_WRITTEN = tuple(column.name for column in items.c if column.name not in _KEPT)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """`known` False: only seen in events. `content.created_at_us` is never None; lists come without `embeddings`."""

    item_index: int
    item_id: str
    known: bool
    revision: int
    updated_at_us: int
    deleted_at_us: int | None
    content: ItemContent

    @property
    def is_listed(self) -> bool:
        return self.deleted_at_us is None

    @property
    def has_content(self) -> bool:
        return self.known and self.is_listed


@dataclass(frozen=True, slots=True)
class Written:
    """`items` in the order of their first mention; `created`: item_ids that had no content before."""

    items: tuple[StoredItem, ...]
    created: frozenset[str]


def put_items(connection: Connection, writes: Sequence[tuple[str, ItemContent]], now_us: int) -> Written:
    """Replaces whole items; of several for one item_id the last counts. A deleted item is one again afterwards.

    An item that is what it should be already is left alone: importing the same catalogue every night changes nothing,
    so no recommender has to read it again.
    """
    wanted = dict(writes)
    before = _read(connection, list(wanted))
    if all(_is(before.get(item_id), content) for item_id, content in wanted.items()):
        return Written(tuple(before[item_id] for item_id in wanted), frozenset())
    revision = raise_catalogue(connection)
    before = _refreshed(connection, before, list(wanted))
    indices = allocate(connection, (item_id for item_id in wanted if item_id not in before))
    after: list[StoredItem] = []
    changed: list[StoredItem] = []
    for item_id, content in wanted.items():
        old = before.get(item_id)
        if old is not None and _is(old, content):
            after.append(old)
            continue
        item_index = indices[item_id] if old is None else old.item_index
        aged = _aged(content, now_us if old is None else old.content.created_at_us)
        after.append(StoredItem(item_index, item_id, True, revision, _later(now_us, old), None, aged))
        changed.append(after[-1])
    _store(connection, changed)
    created = (item_id for item_id in wanted if item_id not in before or not before[item_id].has_content)
    return Written(tuple(after), frozenset(created))


def patch_item(connection: Connection, item_id: str, patch: ItemPatch, now_us: int) -> StoredItem:
    """An item seen in events alone has empty content. Raises NotFound; ValidationFailed when the item would not be
    sound afterwards."""
    old = _existing(connection, item_id)
    if old.known and old.content.patched(patch) == old.content:
        return old
    revision = raise_catalogue(connection)
    old = _existing(connection, item_id)
    content = old.content.patched(patch)
    faults = check_content(content)
    if faults:
        raise ValidationFailed(f"{faults[0].pointer}: {faults[0].message}", errors=faults)
    patched = replace(old, known=True, revision=revision, updated_at_us=_later(now_us, old), content=content)
    _store(connection, [patched])
    return patched


def delete_item(connection: Connection, item_id: str, now_us: int) -> StoredItem:
    """Deleting it again changes nothing. Raises NotFound for an id that was never seen."""
    old = _seen(connection, item_id)
    if not old.is_listed:
        return old
    revision = raise_catalogue(connection)
    old = _seen(connection, item_id)
    if not old.is_listed:
        return old
    deleted = replace(old, revision=revision, updated_at_us=_later(now_us, old), deleted_at_us=now_us)
    _store(connection, [deleted])
    return deleted


def get_item(connection: Connection, item_id: str) -> StoredItem:
    """Raises NotFound, for a deleted item too."""
    return _existing(connection, item_id)


def list_items(connection: Connection, after: str, limit: int) -> list[StoredItem]:
    """By item_id, from the first one behind `after`: rows that come and go never shift a page."""
    page = (
        select(*_COLUMNS, literal(None).label("embeddings"))
        .where(items.c.item_id > after, items.c.deleted_at_us.is_(None))
        .order_by(items.c.item_id)
        .limit(limit)
    )
    return [_item(row) for row in connection.execute(page)]


def _existing(connection: Connection, item_id: str) -> StoredItem:
    found = _seen(connection, item_id)
    if not found.is_listed:
        raise NotFound("there is no such item_id")
    return found


def _seen(connection: Connection, item_id: str) -> StoredItem:
    found = _read(connection, [item_id]).get(item_id)
    if found is None:
        raise NotFound("there is no such item_id")
    return found


def _is(old: StoredItem | None, content: ItemContent) -> bool:
    return old is not None and old.has_content and old.content == _aged(content, old.content.created_at_us)


def _aged(content: ItemContent, created_at_us: int | None) -> ItemContent:
    return content if content.created_at_us is not None else replace(content, created_at_us=created_at_us)


def _later(now_us: int, old: StoredItem | None) -> int:
    """A clock that went back must not make this change look older than the last one."""
    return now_us if old is None else max(now_us, old.updated_at_us + 1)


def _store(connection: Connection, changed: Sequence[StoredItem]) -> None:
    upsert(connection, items, [_row(item) for item in changed], _WRITTEN)


def _read(connection: Connection, item_ids: Sequence[str]) -> dict[str, StoredItem]:
    found: dict[str, StoredItem] = {}
    for start in range(0, len(item_ids), IDS_A_STATEMENT):
        chunk = item_ids[start : start + IDS_A_STATEMENT]
        rows = connection.execute(select(*_COLUMNS, items.c.embeddings).where(items.c.item_id.in_(chunk)))
        found.update((row.item_id, _item(row)) for row in rows)
    return found


def _refreshed(
    connection: Connection, before: Mapping[str, StoredItem], item_ids: Sequence[str]
) -> dict[str, StoredItem]:
    """The items as they are now that nobody else can change them. Only those of another revision are read again:
    decoding 500 embeddings twice would cost as much as storing them."""
    revisions: dict[str, int] = {}
    for start in range(0, len(item_ids), IDS_A_STATEMENT):
        chunk = item_ids[start : start + IDS_A_STATEMENT]
        rows = connection.execute(select(items.c.item_id, items.c.revision).where(items.c.item_id.in_(chunk)))
        revisions.update((row.item_id, row.revision) for row in rows)
    kept = {item_id: old for item_id, old in before.items() if revisions.get(item_id) == old.revision}
    return kept | _read(connection, [item_id for item_id in revisions if item_id not in kept])


def _item(row: Row[*tuple[Any, ...]]) -> StoredItem:
    content = ItemContent(
        item_type=row.item_type,
        title=row.title,
        categories=tuple(row.categories),
        is_hidden=row.is_hidden,
        available_from_us=row.available_from_us,
        available_until_us=row.available_until_us,
        price=row.price,
        currency=row.currency,
        created_at_us=row.created_at_us,
        properties=row.properties,
        embeddings=row.embeddings or {},
    )
    return StoredItem(
        row.item_index, row.item_id, row.known, row.revision, row.updated_at_us, row.deleted_at_us, content
    )


def _row(item: StoredItem) -> Mapping[str, Any]:
    content = item.content
    return {
        "item_index": item.item_index,
        "item_id": item.item_id,
        "known": item.known,
        "item_type": content.item_type,
        "title": content.title,
        "categories": list(content.categories),
        "is_hidden": content.is_hidden,
        "available_from_us": content.available_from_us,
        "available_until_us": content.available_until_us,
        "price": content.price,
        "currency": content.currency,
        "created_at_us": content.created_at_us,
        "properties": dict(content.properties),
        "embeddings": dict(content.embeddings),
        "revision": item.revision,
        "updated_at_us": item.updated_at_us,
        "deleted_at_us": item.deleted_at_us,
    }
