"""What the database says about a user: the fallback of a request, and the check of a history that Redis held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from services.features.reading.history import load_stored
from services.features.users.profile_cache import Profile
from shared.actions import ActionTable
from shared.contracts.history import UserHistory
from shared.storage.tables import user_state, users


@dataclass(frozen=True, slots=True)
class Stored:
    """`history` None: the revision that was asked about is the present one. `profile` is empty if never PUT.
    `extras`: extra keys that the database could give."""

    history: UserHistory | None
    profile: Profile
    deleted: bool
    extras: Mapping[str, bytes] = field(default_factory=dict)


def read_stored(
    connection: Connection, user_key: str, *, revision: int | None, max_events: int, actions: ActionTable
) -> Stored:
    """`revision`: that of the rows in Redis; the rows are loaded only when it is None or not the present one."""
    profile = load_profile(connection, user_key)
    if revision is not None:
        state = connection.execute(
            select(user_state.c.revision, user_state.c.deleted_at_us).where(user_state.c.user_key == user_key)
        ).one_or_none()
        deleted = state is not None and state.deleted_at_us is not None
        if not deleted and revision == (0 if state is None else state.revision):
            return Stored(None, profile, deleted)
    found = load_stored(connection, user_key, max_events=max_events, actions=actions)
    return Stored(found.history, Profile() if found.deleted else profile, found.deleted)


def load_profile(connection: Connection, user_key: str) -> Profile:
    row = connection.execute(
        select(users.c.properties, users.c.segments, users.c.updated_at_us).where(users.c.user_key == user_key)
    ).one_or_none()
    return Profile() if row is None else Profile(row.properties, tuple(row.segments), row.updated_at_us)
