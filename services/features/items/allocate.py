"""item_index and catalogue revisions, handed out so that no two transactions can disagree.

Every transaction that changes items raises `counters.catalogue` first. The raised row stays locked until the commit,
which makes the counter the one lock of all writers of `items`:

- revisions become visible in their order, so a reader that asks for what came after N never misses a late N - 1;
- what is missing can be looked up and inserted without a race, so item_index has no gaps: upserts would burn a number
  of MySQL's AUTO_INCREMENT for each row that exists already, and item_index is a row of tensors.

A transaction that also locks other rows (a user's state) calls `ensure_items` before it locks them; in another order
two of them can deadlock, which `Database.transact` repeats at the price of a wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select

from shared.storage.statements import raise_counter
from shared.storage.tables import items

CATALOGUE = "catalogue"
# SQLite takes 32,766 parameters a statement; MySQL's optimiser gives up its range estimate at much longer lists.
IDS_A_STATEMENT = 1000


def raise_catalogue(connection: Connection) -> int:
    """The revision for everything this transaction changes in `items`. Call it before reading what will be changed."""
    return raise_counter(connection, CATALOGUE)


def ensure_items(connection: Connection, item_ids: Sequence[str], *, now_us: int) -> dict[str, int]:
    """item_id -> item_index of all `item_ids`; those never seen get a row without content (`known` false).

    Nothing is written or locked when every item exists, deleted ones included. Ids must be valid (`is_id`).
    """
    wanted = dict.fromkeys(item_ids)
    found = find_items(connection, wanted)
    missing = [item_id for item_id in wanted if item_id not in found]
    if not missing:
        return found
    revision = raise_catalogue(connection)
    found |= find_items(connection, missing)  # another transaction may have made them while this one waited
    missing = [item_id for item_id in missing if item_id not in found]
    made = allocate(connection, missing)
    rows = [_empty_row(item_id, item_index, revision, now_us) for item_id, item_index in made.items()]
    if rows:
        connection.execute(insert(items), rows)
    return found | made


def find_items(connection: Connection, item_ids: Iterable[str]) -> dict[str, int]:
    """item_id -> item_index of those that exist."""
    ids = list(item_ids)
    found: dict[str, int] = {}
    for start in range(0, len(ids), IDS_A_STATEMENT):
        chunk = ids[start : start + IDS_A_STATEMENT]
        rows = connection.execute(select(items.c.item_id, items.c.item_index).where(items.c.item_id.in_(chunk)))
        found.update((row.item_id, row.item_index) for row in rows)
    return found


def allocate(connection: Connection, item_ids: Iterable[str]) -> dict[str, int]:
    """The next numbers, from 1; the caller has raised the catalogue, and inserts every one in the same transaction.

    Rows are never removed from `items`, so the highest one is the last that was handed out."""
    last = connection.scalar(select(func.max(items.c.item_index))) or 0
    return {item_id: item_index for item_index, item_id in enumerate(item_ids, last + 1)}


def _empty_row(item_id: str, item_index: int, revision: int, now_us: int) -> dict[str, Any]:
    return {
        "item_index": item_index,
        "item_id": item_id,
        "known": False,
        "categories": [],
        "is_hidden": False,
        "created_at_us": now_us,
        "properties": {},
        "embeddings": {},
        "revision": revision,
        "updated_at_us": now_us,
    }
