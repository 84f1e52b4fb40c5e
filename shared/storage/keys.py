"""API keys: `sk_<role>_<43 characters>`, of which only a SHA-256 is stored.

256 random bits need no slow hash: there is no dictionary to try. Revoked rows stay, so that a suite which once had keys
never falls back to serving without any.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, insert, select, update

from shared.errors import DatabaseUnavailable, NotFound, ValidationFailed
from shared.observability.logging import get_logger
from shared.observability.tasks import TaskOwner
from shared.storage.database import Database
from shared.storage.tables import api_keys

Role = Literal["client", "server", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
REFRESH_S = 2.0
NAME_MAX_LENGTH = 128
_TOKEN_BYTES = 32
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    role: Role
    name: str
    created_at_us: int
    revoked_at_us: int | None


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """`text` is shown once and stored nowhere."""

    key: ApiKey
    text: str


def create(database: Database, role: str, name: str, *, now_us: int | None = None) -> CreatedKey:
    """Raises ValidationFailed for a role or name that cannot be."""
    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise ValidationFailed(f"a key's role is one of {', '.join(ROLES)}, not {role!a}")
    if not 1 <= len(name) <= NAME_MAX_LENGTH or not name.isprintable():
        raise ValidationFailed(f"a key's name has 1 to {NAME_MAX_LENGTH} printable characters")
    text = f"sk_{known}_{secrets.token_urlsafe(_TOKEN_BYTES)}"
    key = ApiKey(f"key_{secrets.token_hex(8)}", known, name, _now_us() if now_us is None else now_us, None)

    def work(connection: Connection) -> None:
        connection.execute(
            insert(api_keys).values(
                key_id=key.key_id,
                key_hash=hash_of(text),
                role=key.role,
                name=key.name,
                created_at_us=key.created_at_us,
            )
        )

    database.transact(work)
    return CreatedKey(key, text)


def list_keys(database: Database) -> list[ApiKey]:
    """All of them, revoked ones too, oldest first."""
    return [key for key, _ in _rows(database)]


def revoke(database: Database, key_id: str, *, now_us: int | None = None) -> ApiKey:
    """Revoking twice changes nothing. Running services follow within `REFRESH_S`. Raises NotFound."""
    at = _now_us() if now_us is None else now_us

    def work(connection: Connection) -> None:
        connection.execute(
            update(api_keys)
            .where(api_keys.c.key_id == key_id, api_keys.c.revoked_at_us.is_(None))
            .values(revoked_at_us=at)
        )

    database.transact(work)
    for key in list_keys(database):
        if key.key_id == key_id:
            return key
    raise NotFound(f"there is no key {key_id!a}; `silkrec keys list` shows them")


def has_keys(database: Database) -> bool:
    """Was any key ever made? Revoked ones count: revoking the last must not open the door."""
    with database.read() as connection:
        return connection.execute(select(api_keys.c.key_id).limit(1)).first() is not None


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class KeyCache:
    """Every key in memory, read again every `REFRESH_S`. While the database is down the last known keys hold.

    Looked up by hash, so the time of a look-up says nothing about a key. Use from one event loop.
    """

    def __init__(self, database: Database, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._database = database
        self._sleep = sleep
        self._by_hash: Mapping[str, ApiKey] | None = None
        self._failing = False

    async def start(self, tasks: TaskOwner) -> None:
        """First reading, then the refresh in the background. A dead database is tried again, not raised."""
        await self.refresh()
        tasks.start("api_keys", self._keep_fresh)

    async def refresh(self) -> bool:
        """False when the database did not answer, and what was known is kept."""
        try:
            rows = await self._database.run(_rows, self._database)
        except DatabaseUnavailable as error:
            if not self._failing:
                _log.warning("API keys cannot be read; the last known ones hold", detail=error.detail)
            self._failing = True
            return False
        self._failing = False
        self._by_hash = {digest: key for key, digest in rows}
        return True

    def has_keys(self) -> bool:
        """Raises DatabaseUnavailable while nothing was ever read: then nobody can say who may come in."""
        return bool(self._known())

    def find(self, text: str) -> ApiKey | None:
        """The key, unless unknown or revoked."""
        key = self._known().get(hash_of(text))
        return key if key is not None and key.revoked_at_us is None else None

    def is_valid(self, key_id: str) -> bool:
        """Does the key of this id exist and hold? A dashboard session asks at every page."""
        return any(key.key_id == key_id and key.revoked_at_us is None for key in self._known().values())

    def _known(self) -> Mapping[str, ApiKey]:
        if self._by_hash is None:
            raise DatabaseUnavailable("the API keys could not be read yet", retry_after_s=REFRESH_S)
        return self._by_hash

    async def _keep_fresh(self) -> None:
        while True:
            await self._sleep(REFRESH_S)
            await self.refresh()


def _rows(database: Database) -> list[tuple[ApiKey, str]]:
    with database.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at_us, api_keys.c.key_id)).all()
    return [
        (ApiKey(row.key_id, row.role, row.name, row.created_at_us, row.revoked_at_us), row.key_hash) for row in rows
    ]


def _now_us() -> int:
    return time.time_ns() // 1000
