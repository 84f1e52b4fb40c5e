"""Profiles in the database: put, patch, get, list. Each function is one transaction's work on a connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, null, select, update

from shared.errors import Conflict, NotFound
from shared.storage.statements import upsert
from shared.storage.tables import deletions, user_state, users

_COLUMNS = (users.c.user_key, users.c.properties, users.c.segments, users.c.created_at_us, users.c.updated_at_us)


@dataclass(frozen=True, slots=True)
class UserProfile:
    """Times are microseconds since 1970 UTC."""

    user_key: str
    properties: Mapping[str, Any]
    segments: tuple[str, ...]
    created_at_us: int
    updated_at_us: int


@dataclass(frozen=True, slots=True)
class ProfileWrite:
    user_key: str
    properties: Mapping[str, Any]
    segments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutResult:
    """`refused`: user_keys whose deletion has not reached the database yet."""

    written: tuple[UserProfile, ...]
    created: frozenset[str]
    refused: frozenset[str]


def put_profiles(connection: Connection, writes: Sequence[ProfileWrite], now_us: int) -> PutResult:
    """Replaces whole profiles; of several for one user the last counts. A deleted user is one again afterwards.

    Marks the users dirty: the mark goes once Redis holds the profile (`clear_dirty`).
    """
    wanted = {write.user_key: write for write in writes}
    refused = pending_deletions(connection, list(wanted))
    keys = sorted(wanted.keys() - refused)
    before = {row.user_key: row for row in _read(connection, keys, lock=True)}
    written = []
    for key in keys:
        old = before.get(key)
        # A clock that went back must not make this change look older than the last one.
        changed_us = now_us if old is None else max(now_us, old.updated_at_us + 1)
        created_us = now_us if old is None else old.created_at_us
        written.append(UserProfile(key, wanted[key].properties, wanted[key].segments, created_us, changed_us))
    _store(connection, written, now_us)
    _restore_visitors(connection, keys)
    return PutResult(tuple(written), frozenset(keys) - before.keys(), refused)


def patch_profile(
    connection: Connection,
    user_key: str,
    properties: Mapping[str, Any],
    segments: Sequence[str] | None,
    now_us: int,
) -> UserProfile:
    """RFC 7396 on the properties (null takes one away); segments are replaced when given. Raises NotFound."""
    rows = _read(connection, [user_key], lock=True)
    if not rows:
        raise NotFound("no profile was PUT for this user_id")
    old = _profile(rows[0])
    merged = {name: value for name, value in {**old.properties, **properties}.items() if value is not None}
    kept = old.segments if segments is None else tuple(segments)
    patched = UserProfile(user_key, merged, kept, old.created_at_us, max(now_us, old.updated_at_us + 1))
    _store(connection, [patched], now_us)
    return patched


def get_profile(connection: Connection, user_key: str) -> UserProfile:
    """Raises NotFound."""
    rows = _read(connection, [user_key], lock=False)
    if not rows:
        raise NotFound("no profile was PUT for this user_id")
    return _profile(rows[0])


def list_profiles(connection: Connection, after: str, limit: int) -> list[UserProfile]:
    """By user_key, from the first one behind `after`: rows that come and go never shift a page."""
    page = select(*_COLUMNS).where(users.c.user_key > after).order_by(users.c.user_key).limit(limit)
    return [_profile(row) for row in connection.execute(page)]


def clear_dirty(connection: Connection, user_keys: Sequence[str], marked_us: int) -> None:
    """Takes away the marks that were set at `marked_us`, and no other's."""
    connection.execute(
        update(user_state)
        .where(user_state.c.user_key.in_(user_keys), user_state.c.dirty_since_us == marked_us)
        .values(dirty_since_us=None)
    )


def pending_deletions(connection: Connection, user_keys: Sequence[str]) -> frozenset[str]:
    """Those whose rows a deletion has still to remove: putting them now would let it remove the new ones too."""
    gone = select(user_state.c.user_key).where(
        user_state.c.user_key.in_(user_keys), user_state.c.deleted_at_us.is_not(None)
    )
    deleted = list(connection.scalars(gone))
    if not deleted:
        return frozenset()
    rows = connection.execute(
        select(deletions.c.user_key, deletions.c.receipts).where(
            deletions.c.user_key.in_(deleted), deletions.c.finished_at_us.is_(None)
        )
    )
    return frozenset(row.user_key for row in rows if row.receipts.get("mysql", {}).get("state") != "done")


def refuse_pending(refused: frozenset[str]) -> None:
    if refused:
        raise Conflict("this user is being deleted; PUT again once the deletion has left the database", retry_after_s=1)


def _store(connection: Connection, profiles: Sequence[UserProfile], now_us: int) -> None:
    rows = [
        {
            "user_key": profile.user_key,
            "properties": dict(profile.properties),
            "segments": list(profile.segments),
            "created_at_us": profile.created_at_us,
            "updated_at_us": profile.updated_at_us,
        }
        for profile in profiles
    ]
    upsert(connection, users, rows, ("properties", "segments", "updated_at_us"))
    states = [{"user_key": profile.user_key, "revision": 0, "dirty_since_us": now_us} for profile in profiles]
    upsert(
        connection,
        user_state,
        states,
        lambda offered: {
            "deleted_at_us": null(),
            "dirty_since_us": func.coalesce(user_state.c.dirty_since_us, offered.dirty_since_us),
        },
    )


def _restore_visitors(connection: Connection, user_keys: Sequence[str]) -> None:
    """Visitors that were deleted together with their user are no longer refused either."""
    known = select(deletions.c.user_key).where(deletions.c.user_key.in_(user_keys))
    back = list(connection.scalars(known))
    if back:
        connection.execute(update(user_state).where(user_state.c.merged_into.in_(back)).values(deleted_at_us=None))


def _read(connection: Connection, user_keys: Sequence[str], *, lock: bool) -> list[Row[*tuple[Any, ...]]]:
    statement = select(*_COLUMNS).where(users.c.user_key.in_(user_keys)).order_by(users.c.user_key)
    return list(connection.execute(statement.with_for_update() if lock else statement))


def _profile(row: Row[*tuple[Any, ...]]) -> UserProfile:
    return UserProfile(row.user_key, row.properties, tuple(row.segments), row.created_at_us, row.updated_at_us)
