"""What an import would do, by questions only: nothing is written, nothing is locked."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from services.features.bulk.batches import DELETED, Batch, Done
from services.features.bulk.event_cells import EventColumns
from services.features.bulk.rejects import Reject
from services.features.bulk.write import CHUNK, known
from services.features.ingest.rows import DAY_US
from services.features.items.allocate import find_items
from shared.storage.database import Database
from shared.storage.tables import user_state


class Preview:
    """`database` None: every sound row counts as accepted. An event_id that stands twice in the file is noticed within
    a batch only. `new_items`, `new_users` None: not events, or nobody to ask."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._items: set[str] = set()
        self._users: set[str] = set()
        self._asked = False

    @property
    def new_items(self) -> int | None:
        return len(self._items) if self._asked else None

    @property
    def new_users(self) -> int | None:
        return len(self._users) if self._asked else None

    def of(self, batch: Batch) -> Done:
        if self._database is None or batch.events is None:
            return Done(batch.sound, 0, batch.rejects)
        self._asked = True
        with self._database.read() as connection:
            return self._ask(connection, batch.events, batch.rejects)

    def _ask(self, connection: Connection, columns: EventColumns, rejects: Sequence[Reject]) -> Done:
        fresh = ~known(connection, columns.event_id, columns.occurred_at_us // DAY_US)
        duplicates = len(columns) - int(fresh.sum())
        columns = columns.taken(fresh)
        user_keys = list(set(columns.user_key) - self._users)
        stored: dict[str, int | None] = {}
        for start in range(0, len(user_keys), CHUNK):
            found = select(user_state.c.user_key, user_state.c.deleted_at_us)
            rows = connection.execute(found.where(user_state.c.user_key.in_(user_keys[start : start + CHUNK])))
            stored.update((row.user_key, row.deleted_at_us) for row in rows)
        self._users.update(key for key in user_keys if key not in stored)
        item_ids = {item_id for item_id in columns.item_id if item_id is not None} - self._items
        self._items.update(item_ids - find_items(connection, item_ids).keys())
        gone = {key for key, deleted_at_us in stored.items() if deleted_at_us is not None}
        refused = [
            Reject(row, "user_deleted", DELETED, {"event_id": event_id})
            for row, event_id, key in zip(columns.row, columns.event_id, columns.user_key, strict=True)
            if key in gone
        ]
        whole = sorted([*rejects, *refused], key=lambda reject: reject.row)
        return Done(len(columns) - len(refused), duplicates, whole)
