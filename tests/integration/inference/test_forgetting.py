"""What an engine reads is what a deletion writes, on both databases."""

from __future__ import annotations

from services.features.users.deletions import request_deletion
from services.inference.forgetting import deleted_since
from shared.storage.database import Database
from shared.storage.tables import user_state


def test_a_deletion_is_seen_with_the_visitors_that_were_merged_into_the_user(database: Database) -> None:
    rows = [
        {"user_key": "u:ann", "revision": 1, "merged_into": None},
        {"user_key": "v:tab", "revision": 1, "merged_into": "u:ann"},
        {"user_key": "u:bob", "revision": 1, "merged_into": None},
    ]
    with database.write() as connection:
        connection.execute(user_state.insert(), rows)
        request_deletion(connection, "u:ann", 5_000)
    with database.read() as connection:
        assert sorted(deleted_since(connection, 4_999)) == [("u:ann", 5_000), ("v:tab", 5_000)]
        assert deleted_since(connection, 5_000) == []
